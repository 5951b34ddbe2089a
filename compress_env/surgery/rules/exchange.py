"""`exchanged`: whether the channels of a layer may change places, as its rule says, together with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.surgery.rules.cutting import cut

TOLERANCE = 1e-3
"""Difference of outputs, as a share of the largest, up to which they are taken for rounding."""


@torch.no_grad()
def exchanged(
    module: nn.Module,
    axes: Callable[[nn.Module, str, Tensor], tuple[str | None, ...]],
    orders: Mapping[str, np.ndarray],
    given: tuple[Tensor, int, str],
    gave: tuple[Any, int, str],
) -> bool:
    """Whether a layer gives the same outputs in another order for the same inputs in another order.

    Args:
        module: The layer.
        axes: As in `Rule`.
        orders: For each side an order of its features.
        given: What it read, the axis that runs over channels, and the side that they belong to.
        gave: The same of what it gave.
    """
    (x, axis, side), (y, out_axis, out_side) = given, gave
    if not isinstance(y, Tensor) or x.shape[axis] != len(orders[side]) or y.shape[out_axis] != len(orders[out_side]):
        return False
    def whole(name: str, value: Tensor) -> list[str | None]:
        """Axes that run over all features of a side."""
        own = axes(module, name, value)
        return [side if side and value.shape[d] == len(orders[side]) else None for d, side in enumerate(own)]

    new = cut(module, whole, orders, {})
    expected = _moved(y, out_axis, orders[out_side])
    try:
        found = new.forward(_moved(x, axis, orders[side]))
    except Exception:  # noqa: BLE001 - whatever a layer of somebody's own does not like
        return False
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def order(size: int, groups: int = 1) -> np.ndarray:
    """An order of `size` features in which groups that lie one behind the other stay whole, if there are several."""
    if groups == 1:
        return np.random.default_rng(0).permutation(size)
    return np.arange(size).reshape(groups, -1)[np.random.default_rng(0).permutation(groups)].ravel()


def _moved(value: Tensor, axis: int, order: np.ndarray) -> Tensor:
    return value.index_select(axis, torch.from_numpy(order).to(value.device))
