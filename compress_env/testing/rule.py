"""`check_rule`: whether a layer shrinks as its rule says, inside a network of three layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.contexts import seeded
from compress_env.distill.checkpoint import snapshot
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Group
from compress_env.surgery.rules import rule_of
from compress_env.surgery.trace import trace
from compress_env.testing import networks
from compress_env.testing.require import calling, require
from compress_env.testing.teacher import check_students

Calls = Callable[[nn.Module, Tensor], Tensor]


def check_rule(
    layer: nn.Module,
    example: Tensor,
    *,
    call: Calls = lambda layer, x: layer(x),
    axis: int | None = None,
    zeros: bool = True,
    plans: int = 8,
    seed: int = 0,
) -> None:
    """Check the registered rule of a layer's type: the layer is put between two linear ones, and students of random widths are built.

    Every side that the rule names shrinks. Students run, keep the shape of the output, cost what was predicted and share no storage;
    and they compute what the network does when the channels that they lack are 0.

    Args:
        layer: The layer, in evaluation mode.
        example: Its input `(n, ...)`.
        call: How it is called, where that is not `layer(x)`: `lambda layer, x: layer(x, x, x)[0]`.
        axis: The axis of the input that runs over channels; that of the rule if None.
        zeros: Whether channels that are 0 make no difference to others. False for a layer that computes something from all channels
            together, as a normalisation over them does.
        plans: How many random plans are tried.
        seed: Of the random plans and of the layers around.

    Raises:
        AssertionError: Naming the layer's type and what is wrong.
    """
    rule, what = rule_of(layer), f"rule of {type(layer).__name__}"
    require(not layer.training, f"{what}: the layer is in training mode; call .eval() on it")
    with seeded(seed):
        with torch.no_grad(), calling(f"{what}: the layer itself"):
            network = _Between(layer, example, call, rule.channel_axis() if axis is None else axis).eval()
            outputs = network(example)
    before = snapshot(network)
    with calling(f"{what}: tracing"):
        graph = trace(network, example)
    members = {(m.layer, m.side) for group in graph.groups.values() for m in group.members}
    require(bool(members), f"{what}: nothing shrinks in front of the layer or in it: {dict(graph.left_alone)}")
    for side in rule.sides:
        why = graph.left_alone.get("layer", "it belongs to no group")
        require(("layer", side) in members, f"{what}: its side {side!r} never shrinks: {why}")
    check_students(what, network, graph, (example,), outputs, plans, seed)
    require(networks.same(network, before), f"{what}: building students changes the layer")
    for plan in networks.plans(graph, plans, seed) if zeros else ():
        if not plan.removed:
            student = build_student(network, graph, plan)
            with torch.no_grad():
                found, expected = student(example), _silenced(network, graph, dict(plan.widths))(example)
            apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
            require(
                apart < 1e-3,
                f"{what}: the student of {plan} computes something else than the network whose other channels are 0: "
                f"they differ by {apart:.2g} of the largest output",
            )


class _Between(nn.Module):
    """A linear layer, the layer, a linear layer."""

    def __init__(self, layer: nn.Module, example: Tensor, call: Calls, axis: int):
        super().__init__()
        self.before = _linear(example, axis) if example.is_floating_point() else nn.Identity()
        self.layer = layer
        self.call = call
        result = call(layer, self.before(example))
        self.after = _linear(result, axis if result.dim() == example.dim() else -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.call(self.layer, self.before(x)))


def _linear(example: Tensor, axis: int) -> nn.Module:
    """A layer that mixes the channels of tensors like `example`, at each place alone."""
    if axis % example.dim() == example.dim() - 1:
        return nn.Linear(example.shape[-1], example.shape[-1])
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    require(axis == 1 and example.dim() in kinds, f"no layer mixes axis {axis} of {tuple(example.shape)}")
    return kinds[example.dim()](example.shape[1], example.shape[1], 1)


@torch.no_grad()
def _silenced(network: nn.Module, graph: LayerGraph, widths: dict[str, int]) -> nn.Module:
    """A copy of the network in which all weights of the channels that a student lacks are 0."""
    copies = build_student(network, graph, graph.canonical(frozenset(), graph.full))
    for group in graph.groups.values():
        if group.name in widths:
            _silence(copies, group, group.kept(widths[group.name]))
    return copies


def _silence(network: nn.Module, group: Group, kept: np.ndarray) -> None:
    for member in group.members:
        layer = network.get_submodule(member.layer)
        gone = torch.from_numpy(member.position[~kept[member.channel]])
        rule = rule_of(layer)
        for name, value in layer.named_parameters():
            for axis, side in enumerate(rule.axes(layer, name, value)):
                if side == member.side and value.shape[axis] == rule.features(layer, side):
                    value.index_fill_(axis, gone, 0.0)
