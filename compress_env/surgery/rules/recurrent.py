"""Recurrent layers: one node of the network each. What they read may shrink; what they remember and give stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.surgery.call import Call, nothing
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Geometry, Positions, Rule, Shape, first
from compress_env.surgery.rules.cutting import Indices
from compress_env.surgery.rules.registry import register_rule

FIRST = ("weight_ih_l0", "weight_ih_l0_reverse")
"""The weights by which the input is multiplied, of both directions."""


@register_rule(nn.RNNBase)
class Recurrent(Rule):
    """Layers of one or more recurrent networks on top of each other."""

    sides = ("in",)
    reads = ("in",)

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Its inputs are channels of what it reads along the last axis."""
        if not call.inputs or call.node.args[:1] != (call.inputs[0],):
            return super().follow(flow, call, module)
        x, *states = call.inputs
        numbers, rest = flow.channels(call.ids[x], -1, call.shape(x))
        flow.fix([rest, *(call.ids[state] for state in states)], f"{call.name} goes over it step by step")
        flow.side(call.name, "in", numbers)
        return nothing(call.result)

    def channel_axis(self) -> int:
        """The last axis."""
        return -1

    def geometry(self, module: nn.Module, channels: int) -> Geometry:
        """Features that it reads and gives."""
        m: Any = module
        return Geometry("other", m.input_size, (m.proj_size or m.hidden_size) * (2 if m.bidirectional else 1))

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """The weights for the input run over it."""
        return (None, "in") if name in FIRST else ()

    def macs(self, module: nn.Module, inputs: Sequence[Shape], total: float) -> Sequence[tuple[float, tuple[str, ...]]]:
        """Every weight is multiplied once a step."""
        sizes = {name: p.numel() for name, p in module.named_parameters() if p.dim() == 2}
        part = total * sum(n for name, n in sizes.items() if name in FIRST) / sum(sizes.values())
        return [(part, ("in",)), (total - part, ())]

    def sizes(self, module: nn.Module, kept: Mapping[str, int]) -> Mapping[str, Any]:
        """The number of features that it reads."""
        return {"input_size": kept["in"]}

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """PyTorch keeps a list of its weights beside them."""
        new: Any = super().sliced(module, indices)
        new.__setstate__(new.__dict__)  # which makes that list anew
        return new

    def weight(self, module: nn.Module, side: str) -> Tensor:
        """The weights for the input, of both directions."""
        held = dict(module.named_parameters())
        return torch.cat([held[name] for name in FIRST if name in held]).unsqueeze(2)

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """All steps as rows."""
        x = first(args, kwargs)
        return x.reshape(-1, x.shape[-1]).float()
