"""Attention within shifted windows, as in torchvision's Swin transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compress_env.surgery.call import Call
from compress_env.surgery.channel_ids import spread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.attention import Attention, around, tripled
from compress_env.surgery.rules.base import Positions, Shape, first
from compress_env.surgery.rules.cutting import Indices, taken
from compress_env.surgery.rules.registry import register_function, register_rule, rule_of
from compress_env.surgery.rules.windows import WindowAttention, Windows

SWIN = "torchvision.models.swin_transformer.ShiftedWindowAttention"
OPTIONS = ("window_size", "shift_size", "attention_dropout", "dropout", "training")


@register_rule(SWIN, f"{SWIN}V2", WindowAttention)
class ShiftedWindowAttention(Attention):
    """torchvision's, with its bias by relative position."""

    def packed(self, module: nn.Module) -> Tensor:
        """`qkv`."""
        m: Any = module
        return m.qkv.weight

    def projection(self, module: nn.Module) -> nn.Linear:
        """`proj`."""
        m: Any = module
        return m.proj

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Heads go, and channels of what it reads and writes."""
        x = call.inputs[0]
        numbers, rest = flow.channels(call.ids[x], -1, call.shape(x))
        flow.fix(rest, f"{call.name} mixes the places that they were moved to")
        return [spread(self.note(flow, call.name, module, numbers), tuple(call.result.shape), -1)]

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """The bias by relative position has a number for each head, from a table or from a small network."""
        known: dict[str, tuple[str | None, ...]] = {
            "qkv.weight": ("values", "in"), "qkv.bias": ("values",), "proj.weight": ("out", "values"), "proj.bias": ("out",),
            "relative_position_bias_table": (None, "heads"), "cpb_mlp.2.weight": ("heads",), "logit_scale": ("heads",),
        }  # fmt: skip
        return known.get(name, ())

    def macs(
        self, module: nn.Module, inputs: Sequence[Shape], total: float
    ) -> Sequence[tuple[float, tuple[str, ...]]]:
        """Tokens that fill the windows are computed, too; the small network of version 2 has a part that stays."""
        m: Any = module
        tokens = math.prod(math.ceil(n / w) * w for n, w in zip(inputs[0][1:3], m.window_size))
        fixed = m.relative_coords_table.numel() * len(m.cpb_mlp[0].weight) if hasattr(m, "cpb_mlp") else 0
        return [(fixed, ()), *self.parts(module, tokens, total - fixed)]

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """A `WindowAttention`: the layer itself has as many channels in each head as there are channels a head."""
        m: Any = module
        new: Any = WindowAttention()
        new.__dict__.update({name: copy.copy(getattr(m, name)) for name in OPTIONS})
        new.num_heads = self.heads_left(module, indices)
        before = {"in": indices["in"]} if "in" in indices else {}
        if "values" in indices:
            before["out"] = tripled(indices["values"], m.proj.in_features)
        new.qkv = rule_of(m.qkv).sliced(m.qkv, before)
        new.proj = rule_of(m.proj).sliced(m.proj, around(indices))
        for name, p in m.named_parameters(recurse=False):
            cut = taken(p.detach(), self.axes(m, name, p), indices)
            new.register_parameter(name, nn.Parameter(cut, p.requires_grad))
        for name, b in m.named_buffers(recurse=False):
            new.register_buffer(name, b.clone())
        if hasattr(m, "cpb_mlp"):
            new.cpb_mlp = copy.deepcopy(m.cpb_mlp)
            if "heads" in indices:
                last = m.cpb_mlp[-1]
                new.cpb_mlp[-1] = rule_of(last).sliced(last, {"out": indices["heads"]})
        return new

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """All places, or what the heads give for them."""
        x = first(args, kwargs)
        if side != "in":
            windows = Windows(module, x)
            x = windows.joined(windows.mixed())
        return x.reshape(-1, x.shape[-1]).float()

    def written(self, module: nn.Module, output: Any, positions: Positions) -> Tensor:
        """All places."""
        return output.reshape(-1, output.shape[-1]).float().clone()


@register_function("_patch_merging_pad")
def follow_patch_merging(flow: ChannelFlow, call: Call) -> Any:
    """The channels of four neighbours are joined by torchvision, as are their ids; a margin that it adds has none."""
    x = call.inputs[0]
    if any(n % 2 for n in call.shape(x)[-3:-1]):
        return flow.opaque(call, f"{call.node.name} adds a margin")
    return [call.again({x: each}) for each in call.ids[x]]
