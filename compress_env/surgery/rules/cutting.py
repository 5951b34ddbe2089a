"""Copies of layers and tensors with fewer or more features, which share nothing with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.surgery.call import tensors

M = TypeVar("M", bound=nn.Module)
Indices = Mapping[str, np.ndarray]
"""For sides of a layer the features `(n,)` that a student has there, as numbers of the teacher's; a number that comes several times
is a feature with copies, as in Net2Wider (Chen et al., ICLR 2016)."""


def shallow(module: nn.Module) -> nn.Module:
    """A copy with tables of its own, for attributes, parameters, buffers, modules and hooks, but the same things in them."""
    new = object.__new__(type(module))
    new.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in module.__dict__.items()}
    return new


def computed(module: nn.Module) -> list[Tensor]:
    """Tensors that a forward pass with autograd left in attributes, which `copy.deepcopy` refuses."""
    attributes = (value for m in module.modules() for value in vars(m).values())
    return [t for value in attributes for t in tensors(value) if t.grad_fn is not None]


def duplicate(module: M) -> M:
    """A deep copy."""
    try:
        return copy.deepcopy(module)
    except RuntimeError:
        return copy.deepcopy(module, {id(t): t.detach().clone() for t in computed(module)})


def cut(
    module: nn.Module,
    axes: Callable[[str, Tensor], Sequence[str | None]],
    indices: Indices,
    sizes: Mapping[str, Any],
    reads: Sequence[str] = (),
) -> nn.Module:
    """A copy of a layer with the features of its own parameters and buffers that `indices` name, and attributes set to `sizes`.

    Args:
        module: The layer.
        axes: For a parameter or buffer, given by name and value, the sides that its axes run over.
        indices: The features.
        sizes: Attributes that follow them.
        reads: Sides whose features the parameters are multiplied with.
    """
    new = shallow(module)
    for name, p in module._parameters.items():
        if p is not None:
            new._parameters[name] = nn.Parameter(taken(p.detach(), axes(name, p), indices, reads), p.requires_grad)
    for name, b in module._buffers.items():
        if b is not None:
            new._buffers[name] = taken(b, axes(name, b), indices, reads)
    for name, child in module._modules.items():
        new._modules[name] = None if child is None else duplicate(child)
    for name, size in sizes.items():
        if name in new.__dict__:  # some networks compute them from the weights
            new.__dict__[name] = size
    return new


def taken(value: Tensor, axes: Sequence[str | None], indices: Indices, reads: Sequence[str] = ()) -> Tensor:
    """A copy of a tensor with the features that `indices` name along each of its axes that runs over those of a side.

    What is multiplied with a feature that has copies is divided by their number, so that their sum is what it was.
    """
    new = value
    for axis, side in enumerate(axes):
        if side is not None and side in indices:
            index = torch.from_numpy(indices[side]).to(value.device)
            new = new.index_select(axis, index)
            if side in reads and (np.diff(indices[side]) <= 0).any():
                copies = torch.bincount(index, minlength=value.shape[axis])[index]
                new = new / copies.to(new.dtype).view([-1 if d == axis else 1 for d in range(new.dim())])
    return new.clone() if new is value else new
