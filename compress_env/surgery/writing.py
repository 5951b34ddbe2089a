"""`x[index] = value` as a function: the tensor that `x` is from then on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Cut = tuple[int, Any]
"""An axis, and the number or slice that is taken along it."""


def written(x: Tensor, index: Any, value: Any) -> Tensor | None:
    """The tensor with a value in a part of it; None for an index with tensors in it, but for a mask and a number."""
    if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(value, Tensor):
        return x.masked_fill(index.reshape(*index.shape, *[1] * (x.dim() - index.dim())), value)
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, bool) or not isinstance(i, (int, slice, type(Ellipsis))) for i in index):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (x.dim() - len(index) + 1), *index[at + 1 :])
    return _put(x, [(axis, i) for axis, i in enumerate(index) if i != slice(None)], value)


def _put(x: Tensor, cuts: list[Cut], value: Any) -> Tensor:
    if not cuts:
        new = value if isinstance(value, Tensor) else torch.full_like(x, value)
        return new.to(x.dtype).expand(x.shape)
    (axis, i), *rest = cuts
    if isinstance(i, int):
        part = _put(x.select(axis, i), [(other - 1, j) for other, j in rest], value)
        return torch.select_scatter(x, part, axis, i)
    start, stop, step = i.indices(x.shape[axis])
    part = x[(slice(None),) * axis + (i,)]
    part = _put(part.clone() if rest else part, rest, value)
    return torch.slice_scatter(x, part, axis, start, stop, step)
