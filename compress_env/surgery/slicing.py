"""Copies of layers with fewer features."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from compress_env.surgery.layer_types import CONVOLUTIONS, NORMS

Masks = Mapping[str, np.ndarray]
"""For "in" and "out", which features stay."""


def sliced(module: nn.Module, masks: Mapping[str, Masks], name: str) -> nn.Module:
    """A copy of the layer `name` that shares nothing with it, with the features that `masks` keeps; of its inner layers too."""
    if isinstance(module, (*CONVOLUTIONS, nn.Linear, *NORMS, nn.PReLU)) and name in masks:
        return _layer(module, masks[name])
    if type(module).__module__.startswith("torch.nn.") and not (
        module._parameters or module._buffers or module._modules
    ):
        return _shallow(module)  # an activation or a pool
    new = copy.deepcopy(module)
    for inner, child in module.named_modules():
        if inner and f"{name}.{inner}" in masks:
            owner, _, attribute = inner.rpartition(".")
            setattr(new.get_submodule(owner), attribute, _layer(child, masks[f"{name}.{inner}"]))
    return new


def _layer(module: nn.Module, masks: Masks) -> nn.Module:
    inputs, outputs = masks.get("in"), masks.get("out")
    sizes: dict[str, object] = {}
    rows = outputs
    columns = inputs
    if isinstance(module, CONVOLUTIONS):
        if module.groups > 1:
            rows, columns, sizes["groups"] = _grouped(module, inputs, outputs)
        sizes["in_channels"] = int(inputs.sum()) if inputs is not None else module.in_channels
        sizes["out_channels"] = int(outputs.sum()) if outputs is not None else module.out_channels
    elif isinstance(module, nn.Linear):
        sizes["in_features"] = int(inputs.sum()) if inputs is not None else module.in_features
        sizes["out_features"] = int(outputs.sum()) if outputs is not None else module.out_features
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        sizes["normalized_shape"] = (int(outputs.sum()),)
    elif isinstance(module, nn.GroupNorm):
        sizes["num_channels"] = int(outputs.sum())
        sizes["num_groups"] = int(outputs.reshape(module.num_groups, -1).any(1).sum())
    else:
        sizes["num_parameters" if isinstance(module, nn.PReLU) else "num_features"] = int(outputs.sum())
    features = len(outputs) if outputs is not None else -1
    new = _shallow(module)
    for key, value in module._parameters.items():
        if value is not None:
            new._parameters[key] = nn.Parameter(
                _take(value.detach(), rows, columns if key == "weight" else None, features), value.requires_grad
            )
    for key, value in module._buffers.items():
        if value is not None:
            new._buffers[key] = _take(value, outputs, None, features)
    for key, child in module._modules.items():
        new._modules[key] = copy.deepcopy(child)
    for key, value in sizes.items():
        if key in new.__dict__:  # some networks compute them from the weights
            new.__dict__[key] = value
    return new


def _shallow(module: nn.Module) -> nn.Module:
    """A copy with tables of its own, for attributes, parameters, buffers, modules and hooks, but the same things in them."""
    new = object.__new__(type(module))
    new.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in module.__dict__.items()}
    return new


def _take(value: torch.Tensor, rows: np.ndarray | None, columns: np.ndarray | None, features: int) -> torch.Tensor:
    new = value
    if rows is not None and value.dim() and value.shape[0] == features:
        new = new.index_select(0, torch.from_numpy(np.flatnonzero(rows)).to(value.device))
    if columns is not None:
        new = new.index_select(1, torch.from_numpy(np.flatnonzero(columns)).to(value.device))
    return new.clone() if new is value else new


def _grouped(module: nn.Module, inputs: np.ndarray | None, outputs: np.ndarray | None):
    """Rows and columns of a grouped convolution's weight that stay, and the number of groups: whole groups, or the same
    channels of each, have gone."""
    groups = module.groups
    inputs = np.ones(module.in_channels, bool) if inputs is None else inputs
    rows = np.ones(module.out_channels, bool) if outputs is None else outputs
    kept = rows.reshape(groups, -1).any(1)
    return rows, inputs.reshape(groups, -1)[kept][0], int(kept.sum())
