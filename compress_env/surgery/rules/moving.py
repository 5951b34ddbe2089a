"""Views, permutations, splits and slices: they move numbers, and move channel ids in the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress_env.surgery.call import Call, Ids, axes_of
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Rule, along
from compress_env.surgery.rules.registry import register_function, register_rule

PARTLY = ("roll", "flip", "narrow")
"""Functions that move numbers along some axes only."""


@register_rule(nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
class Moving(Rule):
    """Modules that move numbers."""

    leaf = False

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """The module itself runs on the ids."""
        return [module(each) for each in call.ids[call.inputs[0]]]


@register_rule(nn.Flatten)
class Flatten(Moving):
    """`nn.Flatten`: each channel becomes several features."""

    passes = True


@register_function(
    *"view reshape flatten transpose permute movedim moveaxis swapaxes swapdims squeeze unsqueeze expand expand_as repeat tile "
    "repeat_interleave unflatten pixel_shuffle pixel_unshuffle channel_shuffle roll flip narrow t view_as reshape_as ravel".split(),
    "broadcast_to",
)
def follow_moving(flow: ChannelFlow, call: Call) -> Any:
    """The function itself runs on the ids."""
    node, x = call.node, call.inputs[0]
    if call.name in PARTLY:
        where = _moved_along(call, len(call.shape(x)))
        for each in call.ids[x]:
            if where & set(flow.ties.varying(each)):
                flow.fix([each], f"{node.name} moves part of its axis")
    moved = [call.again({x: each}) for each in call.ids[x]]
    if isinstance(call.result, Tensor):
        return moved
    return tuple([each[i] for each in moved] for i in range(len(call.result)))


@register_function("chunk", "split", "tensor_split", "split_with_sizes")
def follow_split(flow: ChannelFlow, call: Call) -> Any:
    """The parts have to follow the widths."""
    x, node = call.inputs[0], call.node
    dim = along(call, 2, 0) % len(call.shape(x))
    own = [each for each in call.ids[x] if dim in flow.ties.varying(each)]
    if own:
        flow.splits[node] = (dim, own, [part.shape[dim] for part in call.result])
    return follow_moving(flow, call)


@register_function("unbind")
def follow_unbind(flow: ChannelFlow, call: Call) -> Any:
    """Parts that become tensors of their own shrink alike."""
    dim = along(call, 1, 0)
    for each in call.ids[call.inputs[0]]:
        flow.ties.tie_along(each, [dim % each.dim()])
    return follow_moving(flow, call)


@register_function("getattr")
def follow_attribute(flow: ChannelFlow, call: Call) -> Any:
    """`x.T` and `x.mT` are transposed; nothing is known of others."""
    name: Any = call.node.args[1]
    if name not in ("T", "mT", "data"):
        return flow.opaque(call, f"{name} has no rule for shrinking")
    return [getattr(each, name) for each in call.ids[call.inputs[0]]]


@register_function("getitem")
def follow_getitem(flow: ChannelFlow, call: Call) -> Any:
    """Slices follow the widths; an index ties what it chooses from."""
    node, x = call.node, call.inputs[0]
    index: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    rank, axis = len(call.shape(x)), 0
    node.meta["rank"] = rank
    used = sum(i is not None and i is not Ellipsis for i in index)
    bounds: list[tuple[int, Ids, int, int]] = []
    for i in call.evaluated(index):
        if i is Ellipsis:
            axis += rank - used
        elif isinstance(i, slice):
            start, stop, step = i.indices(call.shape(x)[axis])
            own = [each for each in call.ids[x] if axis in flow.ties.varying(each)]
            if step != 1:
                flow.fix(own, f"{node.name} takes every {step}th")
            elif own and (start or i.stop is not None):  # a stop at the end, too: of a wider network it is not the end
                bounds.append((axis, own, start, stop))
            axis += 1
        elif i is not None:
            if isinstance(i, Tensor) and i.dtype == torch.bool:
                return flow.opaque(call, f"{node.name} selects with a mask")
            for each in call.ids[x]:
                flow.ties.tie_along(each, [axis])
            axis += 1
    if bounds:
        flow.slices[node] = bounds
    return [call.again({x: each}) for each in call.ids[x]]


def _moved_along(call: Call, rank: int) -> set[int]:
    """The axes along which `roll`, `flip` or `narrow` moves numbers, in whatever way they are given."""
    where = along(call, 2 if call.name == "roll" else 1)
    if call.name == "flip" and isinstance(where, int) and call.node.args[1:]:  # x.flip(1, 2)
        where = call.evaluated(call.node.args[1:])
    if where is None or where in ((), []):  # without axes, the tensor is rolled as a row
        return set(range(rank))
    return axes_of(where, rank)
