"""Refit a fresh student to its teacher without training: least squares layer by layer, and exact normalisation statistics."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress_env.surgery.build import feature_masks, repairs
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import StudentPlan

POSITIONS = 16
"""Outputs looked at per image and convolution."""


class Reconstruction:
    """What the teacher answers on calibration images, computed once; calling it refits a student in a single forward pass.

    In the order of computation, each convolution or linear layer whose input differs from the teacher's gets the weights that best
    reproduce the teacher's outputs from the inputs that the student really sees (He et al., ICCV 2017, in closed form; Ridge
    regression towards the inherited weights). Each batch normalisation gets the statistics of the student's own activations.
    """

    def __init__(self, teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor, ridge: float = 1e-2):
        self.graph, self.inputs, self.ridge = graph, inputs, ridge
        recorder = _Recorder(teacher)
        with torch.no_grad():
            recorder.run(inputs)
        self.targets = recorder.targets

    @torch.no_grad()
    def __call__(self, student: fx.GraphModule, plan: StudentPlan) -> None:
        """Refit `student`, built with `plan`, in place."""
        _Refit(student, self, plan).run(self.inputs)


class _Recorder(fx.Interpreter):
    """Notes the sampled outputs of every dense layer."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.targets: dict[str, Tensor] = {}

    def call_module(self, target, args, kwargs):
        result = super().call_module(target, args, kwargs)
        module = self.module.get_submodule(target)
        if _is_dense(module):
            self.targets[target] = _sample_outputs(target, module, result)
        return result


class _Refit(fx.Interpreter):
    """Runs the student once, refitting each layer before it computes; what lies before the first change is left as it is."""

    def __init__(self, student: fx.GraphModule, reconstruction: Reconstruction, plan: StudentPlan):
        super().__init__(student)
        self.fit = reconstruction
        graph = reconstruction.graph
        reduced = graph.reduce(frozenset(plan.removed))
        masks = feature_masks(graph, plan)
        self.outputs = {layer: torch.from_numpy(m) for (layer, side), m in masks.items() if side == "out"}
        self.altered = {layer for layer, side in masks if side == "in"} | {
            layer for _, layer in repairs(graph, reduced)
        }
        self.rewired = {op.name for op in reduced.ops if op.inputs != graph.ops[op.name].inputs}
        self.changed: set[fx.Node] = set()

    def run_node(self, node: fx.Node):
        inputs_differ = node.name in self.rewired or any(i in self.changed for i in node.all_input_nodes)
        if inputs_differ or node.target in self.altered:
            self.changed.add(node)
            if node.op == "call_module":
                self._refit(node, self.module.get_submodule(node.target))
        return super().run_node(node)

    def _refit(self, node: fx.Node, module: nn.Module) -> None:
        x = self.env[node.all_input_nodes[0]]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            dims = [d for d in range(x.dim()) if d != 1]
            variance, mean = torch.var_mean(x, dims, correction=0)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
        elif _is_dense(module) and node.target in self.fit.targets:
            y = self.fit.targets[node.target]
            if node.target in self.outputs:
                y = y[:, self.outputs[node.target]]
            solve(module, _sample_inputs(node.target, module, x), y, self.fit.ridge)


def solve(module: nn.Module, x: Tensor, y: Tensor, ridge: float) -> None:
    """Set the weights (and bias) of a dense layer so that it maps rows of `x` `(n, inputs)` to `y` `(n, outputs)` in least squares.

    Without a bias, both are centred: a normalisation behind the layer takes the mean out. The penalty `ridge` times the mean
    squared input draws towards the weights that the layer has.
    """
    weight = module.weight.flatten(1)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = (x.T @ x).double()
    gram += ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    step = torch.linalg.solve(gram, (x.T @ (y - x @ weight.T)).double())
    weight = weight + step.T.to(weight.dtype)
    module.weight.copy_(weight.view_as(module.weight))
    if module.bias is not None:
        module.bias.copy_(mean_y - weight @ mean_x)


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
    )  # fmt: skip


def _places(name: str, height: int, width: int) -> list[tuple[int, int]]:
    """Up to POSITIONS output positions, the same for teacher and student."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    order = torch.randperm(height * width, generator=generator)[:POSITIONS].tolist()
    return [divmod(i, width) for i in order]


def _sample_outputs(name: str, module: nn.Module, y: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return y.reshape(-1, y.shape[-1]).clone()
    return torch.cat([y[:, :, r, c] for r, c in _places(name, *y.shape[2:])])


def _sample_inputs(name: str, module: nn.Module, x: Tensor) -> Tensor:
    """Rows of inputs that belong to the rows of `_sample_outputs`: for convolutions, patches laid out like the weights."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = module.kernel_size, module.stride, module.dilation, module.padding
    height = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    x = F.pad(x, (pw, pw, ph, ph))
    patches = []
    for r, c in _places(name, height, width):
        top, left = r * sh, c * sw
        patches.append(x[:, :, top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw].flatten(1))
    return torch.cat(patches)
