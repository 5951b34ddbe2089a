"""Refit a fresh student to its teacher without training: least squares layer by layer, and exact normalisation statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress_env.contexts import seeded
from compress_env.surgery.build import feature_indices, repairs, row_indices
from compress_env.surgery.derived import fits
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.layerwise import Arguments, Layerwise, part_size
from compress_env.surgery.plan import Plan
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.base import Positions, first

ROWS = 16
"""Sampled outputs for each weight of a filter: layers with larger filters look at more positions of each image."""


class Refit:
    """The teacher's answers on calibration images, computed once; calling it refits a student in a single forward pass.

    In the order of computation, each convolution or linear layer whose input differs from the teacher's gets the weights that best
    reproduce the teacher's outputs from the inputs that the student really sees (He et al., ICCV 2017, in closed form; Ridge
    regression towards the inherited weights). Each batch normalisation gets the statistics of the student's own activations.
    bfloat16: activations are computed in mixed precision, the regression in float32.
    """

    def __init__(
        self, teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor, ridge: float = 0.1, bfloat16: bool = False
    ) -> None:
        self.graph, self.inputs, self.ridge, self.bfloat16 = graph, inputs, ridge, bfloat16
        self.parts = inputs.split(part_size(graph, len(inputs), inputs.device))
        recorder = _Recorder(teacher)
        with torch.no_grad(), self.precision(), seeded(0, inputs.device):
            recorder.run(self.parts)
        self.targets, self.positions, self.strides = recorder.targets, recorder.positions, recorder.strides
        self.shapes = recorder.shapes

    def precision(self) -> AbstractContextManager[Any]:
        """The precision of activations."""
        return torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.bfloat16)

    @torch.no_grad()
    def __call__(self, student: fx.GraphModule, plan: Plan) -> None:
        """Refit `student`, built with `plan`, in place."""
        with self.precision(), seeded(0, self.inputs.device):
            _Refit(student, self, plan).run(self.parts)


class _Recorder(Layerwise):
    """Notes the sampled outputs of every dense layer, and where they were taken."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.targets: dict[str, Tensor] = {}
        self.positions: dict[str, Positions] = {}
        self.strides: dict[str, int] = {}
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def run_node(self, node: fx.Node) -> None:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        fitted: Any = None if module is None else rule_of(module).fitted(module)
        if module is None or fitted is None:
            super().run_node(node)
            return
        rule = rule_of(module)
        name, wanted = str(node.target), ROWS * fitted.weight[0].numel()
        given = self.arguments(node)
        read = sum(len(first(*each)) for each in given)
        super().run_node(node)
        outputs = [run.env[node] for run in self.runs]
        if not fits(module, *given[0], outputs[0]):
            return
        self.shapes[name] = [tuple(output.shape) for output in outputs if isinstance(output, Tensor)]
        positions = self.positions[name] = rule.positions(module, name, outputs[0], math.ceil(wanted / read))
        written = [rule.written(module, output, positions) for output in outputs]
        self.strides[name] = max(1, sum(map(len, written)) // wanted)
        self.targets[name] = _compact(_joined(written, self.strides[name]))


class _Refit(Layerwise):
    """Runs the student once, refitting each layer before it computes; what lies before the first change is left as it is."""

    def __init__(self, student: fx.GraphModule, reconstruction: Refit, plan: Plan) -> None:
        super().__init__(student)
        self.fit = reconstruction
        graph = reconstruction.graph
        reduced = graph.view(plan.switched)
        indices = feature_indices(graph, plan)
        self.outputs = {layer: torch.from_numpy(index) for (layer, side), index in indices.items() if side == "out"}
        layers = dict(student.named_modules())
        self.altered = {layer for _, layer in repairs(graph, reduced)} | {
            layer for layer, side in indices if not side.isdigit() and (side != "out" or rule_of(layers.get(layer)).mixes)
        }
        self.rows: dict[str, dict[int, np.ndarray]] = {}
        for (layer, axis), index in row_indices(graph, plan).items():
            self.rows.setdefault(layer, {})[int(axis)] = index
        self.rewired = {op.name for op in reduced.ops if op.inputs != graph.ops[op.name].inputs}
        self.tied = {layer for readers in graph.shared.values() for layer, _ in readers}  # one cannot be fitted alone
        self.changed: set[fx.Node] = set()

    def run_node(self, node: fx.Node) -> None:
        inputs_differ = node.name in self.rewired or any(i in self.changed for i in node.all_input_nodes)
        if inputs_differ or node.target in self.altered:
            self.changed.add(node)
            if node.op == "call_module":
                name = str(node.target)
                module = self.module.get_submodule(name)
                if rule_of(module).keeps_statistics(module):
                    values = self.values(node.all_input_nodes[0], node)
                    rule_of(module).renormalise(module, values)
                    self.replace(node, values)
                    return
                if name in self.fit.targets and name not in self.tied:
                    self._refit(name, module, self.arguments(node))
        super().run_node(node)

    def _refit(self, name: str, module: nn.Module, given: Sequence[Arguments]) -> None:
        rule = rule_of(module)
        y = self.fit.targets[name]
        if name in self.outputs:
            y = y[:, self.outputs[name]]
        fitted: Any = rule.fitted(module)
        assert fitted is not None
        read = [rule.read(module, rule.reads[-1], *arguments, self.fit.positions[name]) for arguments in given]
        stride = self.fit.strides[name]
        if name in self.rows:
            x, rows = self._matching(name, read, stride)
            y = y[rows]
        else:
            x = _joined(read, stride)
        if len(x) == len(y):  # not where a layer is called several times in several ways
            solve(fitted, x, y.float(), self.fit.ridge)

    def _matching(self, name: str, read: Sequence[Tensor], stride: int) -> tuple[Tensor, Tensor]:
        """Rows of what a layer reads, and the numbers of the targets that belong to them, where channels run over another axis."""
        found, numbers, before = [], [], 0
        stride = 1 if len(read) == 1 else stride
        for part, shape in zip(read, self.fit.shapes[name]):
            rows = np.arange(math.prod(shape[:-1])).reshape(shape[:-1])
            for axis, index in self.rows[name].items():
                size = self.fit.graph.features[name, str(axis)]
                rows = rows.take((np.arange(0, shape[axis], size)[:, None] + index).ravel(), axis)  # several examples, on the first
            here = torch.from_numpy(rows.ravel()).to(part.device)
            if len(here) != len(part):
                return part, here
            taken = here % stride == 0
            found.append(part[taken])
            numbers.append(before + here[taken] // stride)
            before += math.ceil(math.prod(shape[:-1]) / stride)
        return torch.cat(found), torch.cat(numbers)


class _Renormalised(Layerwise):
    """Runs a module, each layer of which that keeps statistics takes over those of what it reads."""

    def run_node(self, node: fx.Node) -> None:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is None or not rule_of(module).keeps_statistics(module):
            super().run_node(node)
            return
        values = self.values(node.all_input_nodes[0], node)
        rule_of(module).renormalise(module, values)
        self.replace(node, values)


@torch.no_grad()
def renormalise(module: fx.GraphModule, parts: Sequence[Tensor]) -> None:
    """Have a module in evaluation mode take the statistics of its normalisation from these parts of a batch `(n, ...)`, in place."""
    _Renormalised(module).run(parts)


def _joined(parts: Sequence[Tensor], stride: int) -> Tensor:
    """The rows of all parts; of a batch that is not whole, every so many."""
    return parts[0] if len(parts) == 1 else torch.cat([part[::stride] for part in parts])


def _compact(values: Tensor) -> Tensor:
    """The same values in half the memory, if mixed precision has left no more in them."""
    half = values.bfloat16()
    return half if half.float().equal(values) else values


def solve(module: Any, x: Tensor, y: Tensor, ridge: float) -> None:
    """Set the weights (and bias) of a dense layer so that it maps rows of `x` `(n, inputs)` to `y` `(n, outputs)` in least squares.

    Without a bias, both are centred: a normalisation behind the layer takes the mean out. The penalty `ridge` times the mean
    squared input draws towards the weights that the layer has.
    """
    weight = module.weight.flatten(1)
    with torch.autocast(x.device.type, enabled=False):
        mean_x, mean_y = x.mean(0), y.mean(0)
        gram = (x.T @ x).div_(len(x)).sub_(torch.outer(mean_x, mean_x))
        moment = (x.T @ y).div_(len(x)).sub_(torch.outer(mean_x, mean_y))
        rest = moment - gram @ weight.T
        gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-12))
        factor, failed = torch.linalg.cholesky_ex(gram)
        step = torch.linalg.lstsq(gram, rest).solution if failed else torch.cholesky_solve(rest, factor)
        weight = weight + step.T
        module.weight.copy_(weight.view_as(module.weight))
        if module.bias is not None:
            module.bias.copy_(mean_y - weight @ mean_x)
