"""Copies of layers and tensors with fewer features, which share nothing with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Masks = Mapping[str, np.ndarray]
"""For sides of a layer, which of their features stay."""


def shallow(module: nn.Module) -> nn.Module:
    """A copy with tables of its own, for attributes, parameters, buffers, modules and hooks, but the same things in them."""
    new = object.__new__(type(module))
    new.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in module.__dict__.items()}
    return new


def cut(
    module: nn.Module,
    axes: Callable[[str, Tensor], Sequence[str | None]],
    masks: Masks,
    sizes: Mapping[str, Any],
) -> nn.Module:
    """A copy of a layer with the features of its own parameters and buffers that `masks` keep, and attributes set to `sizes`."""
    new = shallow(module)
    for name, p in module._parameters.items():
        if p is not None:
            new._parameters[name] = nn.Parameter(taken(p.detach(), axes(name, p), masks), p.requires_grad)
    for name, b in module._buffers.items():
        if b is not None:
            new._buffers[name] = taken(b, axes(name, b), masks)
    for name, child in module._modules.items():
        new._modules[name] = copy.deepcopy(child)
    for name, size in sizes.items():
        if name in new.__dict__:  # some networks compute them from the weights
            new.__dict__[name] = size
    return new


def taken(value: Tensor, axes: Sequence[str | None], masks: Masks) -> Tensor:
    """A copy of a tensor with the features that stay along each of its axes that runs over those of a side."""
    new = value
    for axis, side in enumerate(axes):
        if side is not None and side in masks:
            new = new.index_select(axis, torch.from_numpy(np.flatnonzero(masks[side])).to(value.device))
    return new.clone() if new is value else new
