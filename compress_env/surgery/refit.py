"""Refit a fresh student to its teacher without training: least squares layer by layer, and exact normalisation statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.surgery.build import feature_indices, repairs
from compress_env.surgery.graph import LayerGraph
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
        recorder = _Recorder(teacher)
        with torch.no_grad(), self.precision():
            recorder.run(inputs)
        self.targets, self.positions = recorder.targets, recorder.positions

    def precision(self) -> AbstractContextManager[Any]:
        """The precision of activations."""
        return torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.bfloat16)

    @torch.no_grad()
    def __call__(self, student: fx.GraphModule, plan: Plan) -> None:
        """Refit `student`, built with `plan`, in place."""
        with self.precision():
            _Refit(student, self, plan).run(self.inputs)


class _Recorder(fx.Interpreter):
    """Notes the sampled outputs of every dense layer, and where they were taken."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.targets: dict[str, Tensor] = {}
        self.positions: dict[str, Positions] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_module(target, args, kwargs)
        module = self.module.get_submodule(target)
        rule = rule_of(module)
        fitted: Any = rule.fitted(module)
        if fitted is not None:
            wanted = math.ceil(ROWS * fitted.weight[0].numel() / len(first(args, kwargs)))
            self.positions[target] = rule.positions(module, target, result, wanted)
            self.targets[target] = rule.written(module, result, self.positions[target])
        return result


class _Refit(fx.Interpreter):
    """Runs the student once, refitting each layer before it computes; what lies before the first change is left as it is."""

    def __init__(self, student: fx.GraphModule, reconstruction: Refit, plan: Plan) -> None:
        super().__init__(student)
        self.fit = reconstruction
        graph = reconstruction.graph
        reduced = graph.view(frozenset(plan.removed))
        indices = feature_indices(graph, plan)
        self.outputs = {layer: torch.from_numpy(index) for (layer, side), index in indices.items() if side == "out"}
        self.altered = {layer for layer, side in indices if side != "out" and not side.isdigit()} | {
            layer for _, layer in repairs(graph, reduced)
        }
        self.rewired = {op.name for op in reduced.ops if op.inputs != graph.ops[op.name].inputs}
        self.changed: set[fx.Node] = set()

    def run_node(self, node: fx.Node) -> Any:
        inputs_differ = node.name in self.rewired or any(i in self.changed for i in node.all_input_nodes)
        if inputs_differ or node.target in self.altered:
            self.changed.add(node)
            if node.op == "call_module":
                name = str(node.target)
                module = self.module.get_submodule(name)
                if rule_of(module).keeps_statistics(module):
                    return rule_of(module).renormalise(module, self.env[node.all_input_nodes[0]])
                if name in self.fit.targets:
                    self._refit(name, module, *self.fetch_args_kwargs_from_env(node))
        return super().run_node(node)

    def _refit(self, name: str, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        rule = rule_of(module)
        y = self.fit.targets[name]
        if name in self.outputs:
            y = y[:, self.outputs[name]]
        fitted = rule.fitted(module)
        assert fitted is not None
        x = rule.read(module, rule.reads[-1], args, kwargs, self.fit.positions[name])
        if len(x) == len(y):  # fewer, where channels that were lost run over another axis
            solve(fitted, x, y, self.fit.ridge)


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
