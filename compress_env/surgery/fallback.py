"""Widths inside a layer that cannot be traced: what torch-pruning ties by following gradients (DepGraph, Fang et al., CVPR 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.surgery.channel_ids import Ties
from compress_env.surgery.rules.dense import Dense
from compress_env.surgery.rules.registry import rule_of, types_of

if TYPE_CHECKING:
    import torch_pruning as tp

Sides = dict[tuple[str, str], np.ndarray]


def inner_sides(model: nn.Module, examples: tuple[Tensor, ...], opaque: set[str], ties: Ties) -> Sides:
    """Channel numbers of the sides of layers inside the `opaque` ones, tied as torch-pruning finds.

    Only what it ties completely inside one opaque layer, and through layers that can be sliced, is there.
    """
    import torch_pruning as tp  # importing it, with timm, takes a second

    names = {module: name for name, module in model.named_modules()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=examples)
            found = list(dependencies.get_all_groups(root_module_types=types_of(Dense)))
        except Exception:  # noqa: BLE001 - networks that it cannot follow either keep their widths
            return {}
    sides: Sides = {}
    for group in found:
        pieces = _pieces(group, dependencies, names)
        inside = pieces and any(all(name.startswith(f"{region}.") for name, _ in pieces) for region in opaque)
        if pieces is None or not inside or not _fit(pieces, len(group.items[0].idxs), model):
            continue
        numbers = ties.fresh(len(group.items[0].idxs))
        for (name, side), (positions, channels) in pieces.items():
            if (name, side) not in sides:
                sides[name, side] = _fresh(model.get_submodule(name), side, ties)
            ties.unite(sides[name, side][np.array(positions)], numbers[np.array(channels)])
    for own in sides.values():
        alone = own[ties.find(own) == own]
        ties.fix(alone, "it is not tied to anything that was found")
    return sides


def inner_macs(model: nn.Module, examples: tuple[Tensor, ...], layers: set[str]) -> dict[str, float]:
    """MACs for one example of dense layers inside opaque ones, from the shapes that they are called with."""
    macs = dict.fromkeys(layers, 0.0)
    hooks = []

    def count(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, _: Any, result: Tensor) -> None:
            macs[name] += module.weight.numel() * result.numel() / result.shape[rule_of(module).channel_axis()]

        return hook

    for name in layers:
        module = model.get_submodule(name)
        if rule_of(module).produces:
            hooks.append(module.register_forward_hook(count(name)))
    with torch.no_grad():
        model(*(x[:1] for x in examples))
    for hook in hooks:
        hook.remove()
    return macs


def _fresh(module: nn.Module, side: str, ties: Ties) -> np.ndarray:
    return ties.fresh(rule_of(module).features(module, side))


def _fit(pieces: Mapping[tuple[str, str], tuple[list[int], list[int]]], size: int, model: nn.Module) -> bool:
    """Whether all positions and channels exist, which torch-pruning gets wrong where channels are moved."""
    sizes = {(n, side): rule_of(model.get_submodule(n)).features(model.get_submodule(n), side) for n, side in pieces}
    return all(max(own) < sizes[key] and max(channels) < size for key, (own, channels) in pieces.items())


def _pieces(
    group: Any, dependencies: tp.DependencyGraph, names: Mapping[nn.Module, str]
) -> dict[tuple[str, str], tuple[list[int], list[int]]] | None:
    """For each side of a layer its positions and the channels they follow; None if the group holds what cannot be sliced."""
    pieces: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for item in group.items:
        module = item.dep.target.module
        if type(module).__module__.startswith("torch_pruning"):
            continue
        rule = rule_of(module)
        if module not in names or not rule.inside(module) or any(i is None for i in item.root_idxs):
            return None
        side = "out" if "in" not in rule.sides or dependencies.is_out_channel_pruning_fn(item.dep.handler) else "in"
        positions, channels = pieces.setdefault((names[module], side), ([], []))
        positions += item.idxs
        channels += item.root_idxs
    return pieces
