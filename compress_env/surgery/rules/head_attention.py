"""`HeadAttention`: the layer that stands for `nn.MultiheadAttention` in students with fewer heads or channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class HeadAttention(nn.Module):
    """`nn.MultiheadAttention` with any number of heads of any size, called in the same way. A student's layer.

    Its parameters have the same names; `mix` is everything before the last projection.
    """

    num_heads: int
    dropout: float
    batch_first: bool
    in_proj_bias: Tensor | None
    out_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The numbers that the heads give, projected, and the mean of their attention weights, if needed."""
        mixed, weights = mix(self, query, key, value, key_padding_mask, need_weights, attn_mask)
        return self.out_proj(mixed), weights


def mix(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The numbers that the heads of either kind of attention give, laid out like `query`, and their mean weights."""
    heads, flip = module.num_heads, query.dim() == 3 and not module.batch_first
    bias = module.in_proj_bias
    weights = projections(module)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (
        F.linear(x.transpose(0, 1) if flip else x, w, b).unflatten(-1, (heads, -1)).transpose(-3, -2)
        for x, w, b in zip((query, key, value), weights, biases)
    )
    mask = None if attn_mask is None else _additive(attn_mask, q.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, heads))
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q.dtype)[..., None, None, :]
        mask = padding if mask is None else mask + padding
    dropout = module.dropout if module.training else 0.0
    attention = None
    if need_weights:
        attention = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        attention = F.dropout((attention if mask is None else attention + mask).softmax(-1), dropout)
        mixed, attention = attention @ v, attention.mean(-3)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    mixed = mixed.transpose(-3, -2).flatten(-2)
    return mixed.transpose(0, 1) if flip else mixed, attention


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def projections(module: Any) -> Sequence[Tensor]:
    """The weights of queries, keys and values."""
    packed = module.in_proj_weight
    return [getattr(module, name) for name in SEPARATE] if packed is None else packed.chunk(3)
