"""`WindowAttention`: the layer that stands for torchvision's `ShiftedWindowAttention` in students with fewer heads or channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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

    def __init__(self, module: Any, x: Tensor) -> None:
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
        """The numbers that the heads give, `(n * windows, tokens, values)`."""
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
