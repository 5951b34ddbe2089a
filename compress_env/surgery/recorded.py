"""The second way to capture a network: it runs on tensors without contents, and every function that it calls is written down.

Whatever Python a network is written in works then: loops, lengths, conditions on sizes. It runs with two numbers of examples; a
number in which the two runs differ is computed from the number of examples in the graph. A network that looks at the contents of
tensors, or that does something else for another number of examples, cannot be captured this way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, zip_longest
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from compress_env.surgery.leaves import Capture, input_names, is_leaf, is_wrapper
from compress_env.surgery.measure import shared_copy
from compress_env.surgery.network import Network
from compress_env.surgery.writing import written

REFLECTED = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
    "__rpow__": operator.pow, "__rmatmul__": operator.matmul,
}  # fmt: skip
"""Methods by which Python computes `2 - x`."""


class NotRecorded(Exception):
    """What a network does cannot be written down as a graph."""


def recorded(model: nn.Module, examples: tuple[Tensor, ...], opaque: set[str], path: list[str]) -> Capture:
    """The network as a graph, in which the modules of these names are one layer each.

    Raises whatever the network makes of tensors without contents; `path` then holds the names of the modules that it was in.
    """
    batches = (2, 3)
    runs = [_Recorder(model, opaque, path).run(tuple(_batch(x, n) for x in examples)) for n in batches]
    one, other = runs
    _Batch(one, other, batches, path).join()
    for node in reversed(one.graph.nodes):  # what is written to in place is kept
        if not node.users and (node.op == "get_attr" or node.target in (getattr, operator.getitem)):
            one.graph.erase_node(node)
    own = shared_copy(model)
    for name, value in one.constants.items():
        setattr(own, name, value)
    kept = set(one.graph.nodes)
    return Capture(Network(own, one.graph), [(name, node) for name, node in one.ends if node in kept])


def _batch(example: Tensor, count: int) -> Tensor:
    return example[:1].expand(count, *example.shape[1:]).clone()


class _Recorder(TorchFunctionMode):
    """One run of a network.

    Attributes:
        graph: What was called.
        within: For each node of the graph, the module that it belongs to; those of the network itself are absent.
        constants: Tensors that the network makes without its inputs, by the name of the node that gives them.
        ends: As in `Capture`.
    """

    def __init__(self, model: nn.Module, opaque: set[str], path: list[str]) -> None:
        super().__init__()
        self.model, self.opaque, self.path = shared_copy(model), opaque, path  # forward may set attributes
        self.graph = fx.Graph()
        self.within: dict[fx.Node, list[str]] = {}
        self.constants: dict[str, Tensor] = {}
        self.ends: list[tuple[str, fx.Node]] = []
        self.names = {module: name for name, module in self.model.named_modules()}
        self.held = {id(t): name for name, t in [*self.model.named_parameters(), *self.model.named_buffers()]}
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Any] = []  # so that no other tensor gets the identity of one that is gone
        self.inside = False
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def run(self, examples: tuple[Tensor, ...]) -> _Recorder:
        """Run the network once."""
        with torch.no_grad(), self.fake:
            inputs = [self.fake.from_tensor(x) for x in examples]
            placeholders = [self.graph.placeholder(name) for name in input_names(self.model, len(examples))]
            for value, node in zip(inputs, placeholders):
                self._note(value, node)
            self.device, self.placeholders = examples[0].device, placeholders
            with self._modules(), self:
                result = self.model.forward(*inputs)
        self.graph.output(self._node(result))
        return self

    @contextmanager
    def _modules(self) -> Iterator[None]:
        """Modules say when they are called."""
        original: Callable[..., Any] = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = self.names.get(module)
            if is_wrapper(module) and not self.inside:
                return module.get_submodule("module")(*args, **kwargs)
            if name is None or self.inside:
                return original(module, *args, **kwargs)
            self.path.append(name)
            if is_leaf(module, name, self.opaque):
                node = self._create("call_module", name, args, kwargs)
                self.inside = True
                try:
                    result = original(module, *args, **kwargs)
                except Exception:  # noqa: BLE001 - a layer that looks at contents gets some
                    result = self._on_zeros(module, original, args, kwargs)
                self.inside = False
                self._note(result, node)
            else:
                result = original(module, *args, **kwargs)
            if isinstance(result, Tensor):
                self.ends.append((name, self._node(result)))
            self.path.pop()  # not in a `finally`: after an error, the path says where it was
            return result

        def from_numpy(array: np.ndarray) -> Tensor:
            with unset_fake_temporarily():
                return convert(array)

        convert: Callable[..., Tensor] = torch.from_numpy
        with patch.object(nn.Module, "__call__", call), patch.object(torch, "from_numpy", from_numpy):
            yield

    def _on_zeros(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a layer returns for tensors of these shapes, with zeros in them."""

        def filled(value: Any) -> Any:
            fake = isinstance(value, FakeTensor)
            return torch.zeros(value.shape, dtype=value.dtype, device=value.device) if fake else value

        with unset_fake_temporarily():
            args, kwargs = fx.node.map_aggregate((args, kwargs), filled)
            result = call(module, *args, **kwargs)
        return fx.node.map_aggregate(result, lambda x: self.fake.from_tensor(x) if isinstance(x, Tensor) else x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__setitem__":
            return self._write(*args)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if any(isinstance(t, FakeTensor) for t in _tensors((args, kwargs))):
                raise NotRecorded("it looks at the numbers in a tensor") from error
            with unset_fake_temporarily():  # it looks at a buffer of the network
                return func(*args, **kwargs)
        if _tensors(result):
            try:
                self._note(result, self._create(*_target(func, args), kwargs))
            except NotRecorded:
                if _tensors((args, kwargs)):
                    raise
                with unset_fake_temporarily():  # a constant, made from an array say
                    return func(*args, **kwargs)
        return result

    def _write(self, x: Tensor, index: Any, value: Any) -> None:
        """Write to a part of a tensor, which what comes later reads."""
        with self:
            new = written(x, index, value)
        if new is None or id(x) in self.held:
            raise NotRecorded("it writes to a part of a tensor in a way that is not followed")
        x[index] = value
        self._note(x, self._node(new))

    def _create(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        written = fx.node.map_aggregate((tuple(args), dict(kwargs)), self._argument)
        node = self.graph.create_node(op, target, *written)
        self.within[node] = list(self.path)
        return node

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, torch.device) and value == self.device:  # students may be moved
            return self.graph.call_function(getattr, (self.placeholders[0], "device"))
        if value is None or value is Ellipsis or isinstance(value, fx.node.base_types):
            return value
        raise NotRecorded(f"an argument is a {type(value).__name__}")

    def _node(self, value: Any) -> fx.Node:
        """The node that gives a tensor; parameters, buffers and constants get theirs when they are first read."""
        if not isinstance(value, Tensor):
            raise NotRecorded(f"a tensor is expected where there is a {type(value).__name__}")
        if id(value) in self.nodes:
            return self.nodes[id(value)]
        name = self.held.get(id(value))
        if name is None:
            if isinstance(value, FakeTensor):
                raise NotRecorded("it makes a tensor in a way that is not seen")
            names = (f"constant_{i}" for i in count())
            name = next(n for n in names if n not in self.constants and not hasattr(self.model, n))
            self.constants[name] = value
        node = self.graph.create_node("get_attr", name)
        self.within[node] = list(self.path)
        self._note(value, node)
        return node

    def _note(self, value: Any, node: fx.Node) -> None:
        """From now on, `node` gives the tensor `value`, or those in it."""
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            self.alive.append(value)
        elif isinstance(value, (tuple, list, dict)):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                if _tensors(part):
                    self._note(part, self._create_item(node, key))

    def _create_item(self, node: fx.Node, key: Any) -> fx.Node:
        item = self.graph.call_function(operator.getitem, (node, key))
        self.within[item] = list(self.path)
        return item


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _target(func: Any, args: Sequence[Any]) -> tuple[str, Any, Sequence[Any]]:
    """A function that was called as `torch.fx` writes it: kind, target and arguments."""
    name = getattr(func, "__name__", "")
    if not is_tensor_method_or_property(func):
        return "call_function", func, args
    if name == "__get__":
        return "call_function", getattr, (args[0], func.__self__.__name__)
    if name in REFLECTED:
        return "call_function", REFLECTED[name], args[::-1]
    if name.startswith("__") and hasattr(operator, name):
        return "call_function", getattr(operator, name), args
    return "call_method", name, args


class _Batch:
    """Two runs with other numbers of examples, made one: numbers that differ are computed from the number of examples."""

    def __init__(self, one: _Recorder, other: _Recorder, batches: tuple[int, int], path: list[str]) -> None:
        self.one, self.other, self.batches, self.path = one, other, batches, path
        self.twins: dict[fx.Node, fx.Node] = {}
        self.found: dict[tuple[int, int], fx.Node] = {}

    def join(self) -> None:
        """Write what depends on the number of examples into the first graph."""
        for name, value in self.one.constants.items():
            twin = self.other.constants.get(name)
            if twin is None or twin.shape != value.shape or not torch.equal(twin, value):
                raise NotRecorded("a constant in it depends on the number of examples")
        for a, b in list(zip_longest(self.one.graph.nodes, self.other.graph.nodes)):
            self.path[:] = self.one.within.get(a, []) if a else self.other.within.get(b, [])
            if a is None or b is None or (a.op, a.target) != (b.op, b.target):
                raise NotRecorded("what it computes depends on the number of examples")
            self.twins[a] = b
            a.args, a.kwargs = self._joined(a.args, b.args), self._joined(a.kwargs, b.kwargs)
        self.path.clear()

    def _joined(self, u: Any, v: Any) -> Any:
        if isinstance(u, fx.Node):
            if self.twins.get(u) is v:
                return u
        elif isinstance(u, slice) and isinstance(v, slice):
            return slice(*(self._joined(getattr(u, k), getattr(v, k)) for k in ("start", "stop", "step")))
        elif isinstance(u, dict) and isinstance(v, dict) and u.keys() == v.keys():
            return {key: self._joined(each, v[key]) for key, each in u.items()}
        elif isinstance(u, (tuple, list)) and isinstance(v, (tuple, list)) and len(u) == len(v):
            parts = [self._joined(a, b) for a, b in zip(u, v)]
            return tuple(parts) if isinstance(u, tuple) else parts
        elif type(u) is type(v) and (u == v or u != u):
            return u
        elif type(u) is int and type(v) is int:
            return self._number(u, v)
        raise NotRecorded("what it computes depends on the number of examples")

    def _number(self, u: int, v: int) -> fx.Node:
        """The node that computes a number which is `u` in the first run and `v` in the second: a multiple of the examples, plus."""
        low, high = self.batches
        factor, rest = divmod(v - u, high - low)
        offset = u - factor * low
        if rest:
            raise NotRecorded("a number in it depends on the number of examples")
        if (factor, offset) not in self.found:
            graph, inputs = self.one.graph, self.one.placeholders
            if (1, 0) not in self.found:
                with graph.inserting_after(inputs[-1]):
                    self.found[1, 0] = graph.call_method("size", (inputs[0], 0))
            place = self.found[1, 0]
            for what, by, neutral in ((operator.mul, factor, 1), (operator.add, offset, 0)):
                if by != neutral:
                    with graph.inserting_after(place):
                        place = graph.call_function(what, (place, by))
            self.found[factor, offset] = place
        return self.found[factor, offset]
