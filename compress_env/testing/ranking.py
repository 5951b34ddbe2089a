"""`check_ranking`: whether a way to rank channels gives orders that students can be built by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.distill.checkpoint import snapshot
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Ranking
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking import load_ranker
from compress_env.surgery.trace import trace
from compress_env.testing import networks
from compress_env.testing.require import calling, named, require


def check_ranking(ranking: Any, teacher: nn.Module | None = None, inputs: Tensor | None = None) -> None:
    """Check a ranking of channels on one teacher.

    It orders each group's channels, the same way each time, knows groups of this network only, and changes neither the network nor its
    graph; students of the ranked graph keep the channels that come first.

    Args:
        ranking: A name, `module:attribute` or `path/to/file.py:attribute`, or the object itself.
        teacher: A module in evaluation mode; `resnet8-digits` if None.
        inputs: Inputs for it, `(n, ...)`; random ones if None.

    Raises:
        AssertionError: Naming the ranking and what is wrong.
    """
    what = named("ranking", ranking)
    with calling(what):
        ranker = load_ranker(ranking)
    for member in ("NEEDS_INPUTS", "rank"):
        require(hasattr(ranker, member), f"{what} lacks {member}; see compress_env.surgery.ranking.Ranker")
    if teacher is None or inputs is None:
        teacher, inputs = networks.shipped("resnet8-digits")
        inputs = torch.randn(64, *inputs.shape[1:], generator=torch.Generator().manual_seed(0))
    graph = trace(teacher, inputs[:1])
    whole = build_student(teacher, graph, Plan())
    before = snapshot(whole)
    importance = {name: group.importance.copy() for name, group in graph.groups.items()}
    given = inputs if ranker.NEEDS_INPUTS else None
    with calling(f"{what}: rank"):
        found, again = ranker.rank(whole, graph, given), ranker.rank(whole, graph, given)
    require(isinstance(found, Ranking), f"{what}: rank gives {found!r} instead of a Ranking")
    require(networks.same(whole, before), f"{what}: rank changes the network")
    require(
        all(np.array_equal(importance[name], group.importance) for name, group in graph.groups.items()),
        f"{what}: rank changes the graph",
    )
    require(bool(found.orders), f"{what} orders no group")
    require(found.id == again.id, f"{what} gives another order the second time")
    for name, order in found.orders.items():
        require(name in graph.groups, f"{what} orders {name!r}, which is no group of the network")
        complete = np.array_equal(np.sort(order), np.arange(graph.groups[name].size))
        require(complete, f"{what} does not name each channel of {name!r} once: {np.asarray(order).tolist()}")
    _check_students(what, teacher, graph.ranked(found), found, inputs[:2])


def _check_students(what: str, teacher: nn.Module, graph: LayerGraph, ranking: Ranking, inputs: Tensor) -> None:
    for name, order in ranking.orders.items():
        width = max(graph.groups[name].floor, graph.groups[name].size // 2)
        first = set(np.asarray(order)[:width].tolist())
        kept = set(np.flatnonzero(graph.groups[name].kept(width)).tolist())
        require(kept == first, f"{what}: a student keeps the channels {kept} of {name!r} instead of {first}")
    with torch.no_grad(), calling(f"{what}: a student of the ranked graph"):
        build_student(teacher, graph, graph.canonical(frozenset(), graph.floor))(inputs)
