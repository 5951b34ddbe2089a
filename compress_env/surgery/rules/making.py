"""Tensors that the network makes: their sizes stay, whatever they are made like."""

from __future__ import annotations

from typing import Any

from compress_env.surgery.call import Call, nothing
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.registry import register_function


@register_function("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def follow_making(flow: ChannelFlow, call: Call) -> Any:
    """Nothing of the tensor is read but its type and device."""
    return nothing(call.result)
