"""Attention within shifted windows, as in torchvision's Swin transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_env.surgery.channel_ids import spread
from compress_env.surgery.flow import Call, ChannelFlow
from compress_env.surgery.rules.attention import Attention, _around
from compress_env.surgery.rules.base import (
    Masks,
    Positions,
    Shape,
    first,
    register_function,
    register_rule,
    rule_of,
    taken,
)

SWIN = "torchvision.models.swin_transformer.ShiftedWindowAttention"
OPTIONS = ("window_size", "shift_size", "attention_dropout", "dropout", "training")


class WindowAttention(nn.Module):
    """torchvision's `ShiftedWindowAttention`, of both versions, with any number of heads of any size. A student's layer.

    Its parameters and buffers have the same names.
    """

    num_heads: int
    dropout: float
    proj: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """From `(n, height, width, channels)` to the same."""
        windows = Windows(self, x)
        return windows.joined(F.dropout(self.proj(windows.mixed()), self.dropout, self.training))


class Windows:
    """An input `(n, height, width, channels)` of window attention, padded and shifted."""

    def __init__(self, module: Any, x: Tensor):
        self.module, self.shape = module, x.shape
        self.window = list(module.window_size)
        padded = F.pad(x, (0, 0, 0, -x.shape[2] % self.window[1], 0, -x.shape[1] % self.window[0]))
        self.grid = [padded.shape[1] // self.window[0], padded.shape[2] // self.window[1]]
        self.shift = [0 if n == 1 else s for n, s in zip(self.grid, module.shift_size)]
        self.x = padded if not any(self.shift) else padded.roll((-self.shift[0], -self.shift[1]), (1, 2))

    def split(self, x: Tensor) -> Tensor:
        """`(n, height, width, c)` as windows `(n * windows, tokens, c)`."""
        (rows, columns), (high, wide) = self.grid, self.window
        x = x.view(x.shape[0], rows, high, columns, wide, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, high * wide, x.shape[-1])

    def joined(self, x: Tensor) -> Tensor:
        """Windows put back where they come from, without the padding."""
        (rows, columns), (high, wide) = self.grid, self.window
        x = x.view(-1, rows, columns, high, wide, x.shape[-1]).transpose(2, 3)
        x = x.reshape(-1, rows * high, columns * wide, x.shape[-1])
        if any(self.shift):
            x = x.roll((self.shift[0], self.shift[1]), (1, 2))
        return x[:, : self.shape[1], : self.shape[2]].contiguous()

    def mixed(self) -> Tensor:
        """What the heads give, `(n * windows, tokens, values)`."""
        m, heads = self.module, self.module.num_heads
        bias, cosine = m.qkv.bias, hasattr(m, "logit_scale")
        if cosine and bias is not None:
            q, k, v = bias.chunk(3)
            bias = torch.cat([q, torch.zeros_like(k), v])
        qkv = F.linear(self.split(self.x), m.qkv.weight, bias).unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if cosine:
            attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            attention = attention * m.logit_scale.clamp(max=math.log(100.0)).exp()
        else:
            attention = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        attention = attention + self._positions()
        if any(self.shift):
            attention = (attention.unflatten(0, (-1, math.prod(self.grid))) + self._mask()).flatten(0, 1)
        attention = F.dropout(attention.softmax(-1), m.attention_dropout, m.training)
        return (attention @ v).transpose(1, 2).flatten(2)

    def _positions(self) -> Tensor:
        """The bias `(1, heads, tokens, tokens)` by relative position."""
        m, tokens = self.module, math.prod(self.window)
        learned = hasattr(m, "cpb_mlp")
        table = m.cpb_mlp(m.relative_coords_table).view(-1, m.num_heads) if learned else m.relative_position_bias_table
        bias = table[m.relative_position_index].view(tokens, tokens, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        return 16 * bias.sigmoid() if learned else bias

    def _mask(self) -> Tensor:
        """-100 `(windows, 1, tokens, tokens)` between tokens that only the shift has brought together."""
        sizes = [n * w for n, w in zip(self.grid, self.window)]
        rows, columns = (
            sum((torch.arange(n, device=self.x.device) >= n - edge).to(self.x.dtype) for edge in (w, s))
            for n, w, s in zip(sizes, self.window, self.shift)
        )  # regions are counted from the edge that was shifted
        region = self.split((rows[:, None] * 3 + columns).view(1, *sizes, 1)).squeeze(-1)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return torch.where(apart, -100.0, 0.0).to(self.x.dtype).unsqueeze(1)


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

    def sliced(self, module: nn.Module, masks: Masks) -> nn.Module:
        """A `WindowAttention`: the layer itself has as many channels in each head as there are channels a head."""
        m: Any = module
        new: Any = WindowAttention()
        new.__dict__.update({name: copy.copy(getattr(m, name)) for name in OPTIONS})
        new.num_heads = self.heads_left(module, masks)
        before = {"in": masks["in"]} if "in" in masks else {}
        if "values" in masks:
            before["out"] = np.tile(masks["values"], 3)
        new.qkv = rule_of(m.qkv).sliced(m.qkv, before)
        new.proj = rule_of(m.proj).sliced(m.proj, _around(masks))
        for name, p in m.named_parameters(recurse=False):
            cut = taken(p.detach(), self.axes(m, name, p), masks)
            new.register_parameter(name, nn.Parameter(cut, p.requires_grad))
        for name, b in m.named_buffers(recurse=False):
            new.register_buffer(name, b.clone())
        if hasattr(m, "cpb_mlp"):
            new.cpb_mlp = copy.deepcopy(m.cpb_mlp)
            if "heads" in masks:
                last = m.cpb_mlp[-1]
                new.cpb_mlp[-1] = rule_of(last).sliced(last, {"out": masks["heads"]})
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
    """torchvision joins the channels of four neighbours, as it does their ids; a margin that it adds has none."""
    x = call.inputs[0]
    if any(n % 2 for n in call.shape(x)[-3:-1]):
        return flow.opaque(call, f"{call.node.name} adds a margin")
    return [call.again({x: each}) for each in call.ids[x]]
