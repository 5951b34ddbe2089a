"""Tensors that the network makes: filled with one number, they have as many channels as what they meet."""

from __future__ import annotations

from typing import Any

from compress_env.surgery.call import Call, nothing
from compress_env.surgery.channel_ids import spread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.registry import register_function

FILLED = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
"""Functions whose sizes are written in the graph, as arguments by position."""


@register_function(*FILLED)
def follow_filled(flow: ChannelFlow, call: Call) -> Any:
    """Channels that may all go, along axis 1, where the tensor looks like one of images or features."""
    shape = tuple(call.result.shape)
    if "size" in call.node.kwargs or len(shape) not in (2, 4, 5) or not call.result.is_floating_point():
        return nothing(call.result)
    return [spread(flow.ties.fresh(shape[1]), shape, 1)]


@register_function("new_empty", "new_tensor")
def follow_made(flow: ChannelFlow, call: Call) -> Any:
    """Nothing of the tensor is read but its type and device."""
    return nothing(call.result)
