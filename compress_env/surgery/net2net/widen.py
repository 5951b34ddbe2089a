"""Net2Wider: a group with more channels, each of which is one that was there or a copy of it."""

from __future__ import annotations

import torch
from torch import fx, nn

from compress_env.errors import UserError
from compress_env.registry import unknown
from compress_env.surgery.build import build_student, feature_indices
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.net2net.preserved import check_preserved, random_inputs
from compress_env.surgery.plan import Plan
from compress_env.surgery.rules import rule_of


def widen(
    module: nn.Module, graph: LayerGraph, group: str, channels: int, *, noise: float = 0.0, seed: int = 0
) -> fx.GraphModule:
    """The network with a wider group, in evaluation mode; it computes the same, up to rounding.

    The weights of a channel and of its copies are equal where channels are made; where they are read, they are divided by the number
    of copies (Net2Wider, Chen et al., ICLR 2016). All layers that the network ties to the group are widened with it. The most
    important channels are copied first.

    Args:
        module: The network, in evaluation mode; it is not changed.
        graph: Its layer graph, by `trace`.
        group: Name of the group.
        channels: How many it is to have, a multiple of the group's `step`.
        noise: Normal deviates added to the weights of all layers that have copies, as a share of the standard deviation of each weight
            tensor: copies learn different things only if they differ (EAS takes 0.01). 0 preserves the outputs.
        seed: Of the deviates.

    Raises:
        UserError: If there is no such group, or it would not be wider.
        NotPreserved: If the outputs would change by more than 1e-5, as behind a layer normalisation over the channels.
    """
    if group not in graph.groups:
        raise UserError(unknown("group", group, list(graph.groups)))
    own = graph.groups[group]
    if channels <= own.size:
        raise UserError(f"the group {group!r} has {own.size} channels; widened, it needs more than that, got {channels}")
    if channels % own.step:
        raise UserError(f"the group {group!r} has a multiple of {own.step} channels, got {channels}")
    plan = Plan.of(widths={group: channels})
    larger = graph.growing(group, channels)
    wide = build_student(module, larger, plan)
    inputs = random_inputs(graph, module)
    check_preserved(build_student(module, graph, Plan()), wide, inputs, f"{channels} channels for {group!r}")
    if noise:
        touched = {layer for layer, _ in feature_indices(larger, plan)}
        _disturb(wide, touched, noise, torch.Generator().manual_seed(seed))
    return wide


@torch.no_grad()
def _disturb(network: nn.Module, layers: set[str], noise: float, generator: torch.Generator) -> None:
    for name, layer in network.named_modules():
        if name in layers:
            for each in rule_of(layer).weights:
                weight = layer.get_parameter(each)
                deviates = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(deviates, alpha=noise * float(weight.std()))
