"""What a policy's ONNX file may consist of, so that a stranger's can be run: a small network without loops, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto

OPERATORS = frozenset((
    "Abs Add And BatchNormalization Cast CastLike Clip Concat Constant Cos Div Elu Equal Erf Exp Flatten Floor "
    "Gather GatherElements Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max Mean Min Mish Mul Neg Not Or PRelu Pow "
    "Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape RMSNormalization Round Selu Shape "
    "Sigmoid Sign Sin Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Swish Tanh ThresholdedRelu "
    "Transpose Unsqueeze Where "
).split())  # fmt: skip
"""Operators that a policy may have: layers, activations and what brings tensors into shape. None loops, draws or reads a file."""
BYTES = 64 << 20
"""Of a file at most."""
NODES = 2000
"""Operations at most."""
NUMBERS = 1 << 22
"""In one tensor at most."""


class NoPolicy(ValueError):
    """A graph that is not run; the message says why."""


def check(model: ModelProto, entries: int) -> None:
    """Look whether a model is a policy: from one observation `(1, entries)` to an action `(1, 2)`, by known means.

    Args:
        model: As read, without external data.
        entries: Of the observation.

    Raises:
        NoPolicy: If it is not.
    """
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise NoPolicy("it brings functions of its own, training or sparse weights")
    if other := {i.domain for i in model.opset_import} - {"", "ai.onnx"}:
        raise NoPolicy(f"it needs the operators {sorted(other)[0]!r}, which are not ONNX's own")
    if len(graph.node) > NODES:
        raise NoPolicy(f"it has {len(graph.node):,} operations, and a policy has {NODES:,} at most")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise NoPolicy(f"it has the operator {node.domain or 'ONNX'} {node.op_type!r}, which no policy needs")
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise NoPolicy(f"its operator {node.op_type!r} holds a graph")
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise NoPolicy("its weights lie in another file")
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for kind, values, name, shape in (("input", inputs, "observation", (1, entries)), ("output", graph.output, "action", (1, 2))):
        found = [(v.name, _shape(v), v.type.tensor_type.elem_type) for v in values]
        if found != [(name, shape, TensorProto.FLOAT)]:
            raise NoPolicy(f"it has not the one {kind} {name!r} of {shape} floats")
    _check_sizes(model)


def _check_sizes(model: ModelProto) -> None:
    """Every tensor has a size that is known beforehand, and is small."""
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # noqa: BLE001 - the checker has errors of its own in C++
        raise NoPolicy((str(error).splitlines() or [type(error).__name__])[0]) from error
    known = {value.name: _shape(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    known |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for node in inferred.node:
        for name in filter(None, node.output):
            shape = known.get(name)
            if shape is None or math.prod(shape) > NUMBERS:
                raise NoPolicy(f"its operator {node.op_type!r} makes a tensor of {shape or 'unknown'} size, and a policy's are small")


def _shape(value: ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    return None if not kind.HasField("shape") or None in dims else tuple(d for d in dims if d is not None)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
