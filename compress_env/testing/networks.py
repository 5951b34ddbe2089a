"""Small networks and random plans that suites try parts on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.teachers import load_teacher


def shipped(name: str) -> tuple[nn.Module, Tensor]:
    """A teacher of this package, and two random inputs `(2, ...)` for it."""
    teacher = load_teacher(name)
    assert teacher.input_shape is not None
    return teacher.module, torch.randn(2, *teacher.input_shape, generator=torch.Generator().manual_seed(0))


def plans(graph: LayerGraph, count: int, seed: int = 0) -> list[Plan]:
    """Different plans of a graph: the empty one, the smallest ones, and up to `count` random ones."""
    rng = np.random.default_rng(seed)
    everything = frozenset(graph.blocks)
    found = [graph.canonical(frozenset(), graph.full), graph.canonical(frozenset(), graph.floor)]
    found += [graph.canonical(everything, graph.full), graph.canonical(everything, graph.floor)]
    for _ in range(count):
        removed = frozenset(name for name in graph.blocks if rng.random() < 0.5)
        widths = graph.allowed(rng.integers(graph.floor, graph.full + 1)) if len(graph.groups) else graph.full
        found.append(graph.canonical(removed, widths))
    return list(dict.fromkeys(found))


def same(module: nn.Module, before: Mapping[str, Tensor]) -> bool:
    """Whether all parameters and buffers are those of a snapshot, bit for bit."""
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in now.items())


def storages(module: nn.Module) -> set[int]:
    """Where its parameters and buffers lie in memory."""
    held = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in held if tensor.numel()}
