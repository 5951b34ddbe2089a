"""Convolutions that are called as functions, with one filter a channel: blurring before a stride, fixed edge filters and the like."""

from __future__ import annotations

from typing import Any

from torch import fx

from compress_env.surgery.call import Call
from compress_env.surgery.channel_ids import spread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.registry import register_function


@register_function("conv1d", "conv2d", "conv3d")
def follow_filter(flow: ChannelFlow, call: Call) -> Any:
    """Each channel keeps its filter, which goes with it."""
    x, weight, bias = (call.argument(i, name) for i, name in enumerate(("input", "weight", "bias")))
    channels = call.shape(x)[1]
    if call.evaluated(call.argument(6, "groups", 1)) != channels or tuple(call.shape(weight)[:2]) != (channels, 1):
        return flow.opaque(call, f"{call.node.name} has weights that no layer holds")
    numbers, rest = flow.channels(call.ids[x], 1, call.shape(x))
    flow.fix(rest, f"{call.node.name} mixes the places that they were moved to")
    if numbers is None:
        return []
    for own in (weight, bias):
        if isinstance(own, fx.Node):
            ids, within = flow.channels(call.ids[own], 0, call.shape(own))
            flow.fix(within, f"{call.node.name} has filters of a fixed size")
            if ids is not None:
                flow.ties.unite(numbers, ids)
            elif not flow.lengthen(own, 0, numbers, call.shape(own)):
                return flow.opaque(call, f"{call.node.name} has filters that cannot follow its channels")
    out = [spread(numbers, tuple(call.result.shape), 1)]
    flow.groups[call.node] = flow.products[call.node] = out
    return out
