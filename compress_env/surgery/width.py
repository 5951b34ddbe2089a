"""Which channels the network ties together, by torch-pruning's dependency analysis (DepGraph, Fang et al., CVPR 2023)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from compress_env.surgery.graph import Group, Member
from compress_env.surgery.importance import channel_importance

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
DENSE = (*CONVOLUTIONS, nn.Linear)
SLICEABLE = (*DENSE, *NORMS, nn.PReLU)


def find_groups(model: nn.Module, example: torch.Tensor, order: list[str]) -> tuple[dict[str, Group], dict[str, str]]:
    """Groups in the order of `order` (layer names as computed), and the layers left alone with the reason.

    `model` is a copy that may be changed: all its parameters are made to require gradients, as the analysis needs.
    """
    model.requires_grad_(True)
    names = {m: n for n, m in model.named_modules()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    rank = {name: i for i, name in enumerate(order)}
    groups, left_alone = [], {}
    for found in dependencies.get_all_groups(root_module_types=list(DENSE)):
        group, reason = _group(found, dependencies, names, rank)
        if reason:
            for item in found.items:
                name = names.get(item.dep.target.module)
                if name in rank and dependencies.is_out_channel_pruning_fn(item.dep.handler):
                    left_alone[name] = reason
        else:
            groups.append(group)
    groups.sort(key=lambda g: rank[g.name])
    return {g.name: g for g in groups}, left_alone


def _group(found, dependencies, names, rank) -> tuple[Group | None, str | None]:
    """The group that torch-pruning found, or None and why it cannot be shrunk."""
    size = len(found.items[0].idxs)
    pieces: dict[tuple[str, str], tuple[list, list]] = {}
    modules = {}
    for item in found.items:
        module = item.dep.target.module
        if type(module).__module__.startswith("torch_pruning"):
            continue
        name = names.get(module)
        if name is None or not isinstance(module, SLICEABLE):
            return (
                None,
                f"tied to {name or 'a bare parameter'} ({type(module).__name__}), which has no rule for shrinking",
            )
        if isinstance(module, CONVOLUTIONS) and 1 < module.groups and module.groups != module.out_channels:
            return None, f"tied to {name}, a grouped convolution"
        side = "out" if dependencies.is_out_channel_pruning_fn(item.dep.handler) else "in"
        if isinstance(module, NORMS + (nn.PReLU,)) or getattr(module, "groups", 1) > 1:
            side = "out"  # one set of channels, inputs and outputs alike
        positions, channels = pieces.setdefault((name, side), ([], []))
        positions += item.idxs
        channels += item.root_idxs
        modules[name] = module
    members = []
    for (name, side), (positions, channels) in pieces.items():
        index = dict(zip(positions, channels))
        if any(c is None for c in index.values()):
            return None, f"tied to {name} in a way that has no channel-to-channel map"
        position = np.array(sorted(index))
        channel = np.array([index[p] for p in position])
        counts = np.bincount(channel, minlength=size)
        if counts.min() != counts.max():
            return None, f"its channels appear unevenly in {name}"
        members.append(Member(name, side, position, channel))
    members.sort(key=lambda m: (rank.get(m.layer, -1), m.side))
    if any(m.layer not in rank for m in members):
        return None, "part of it is not in the traced network"
    producer = next(m.layer for m in members if m.side == "out" and isinstance(modules[m.layer], DENSE))
    return Group(producer, size, tuple(members), channel_importance(modules, members, size)), None
