"""A network before and after, a row a layer, for pictures and tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress_env.problem import Problem
from compress_env.walk.base import AnyWalk


def network_rows(
    problem: Problem, removed: frozenset[str], widths: np.ndarray, walk: AnyWalk | None = None
) -> list[dict[str, Any]]:
    """A row a layer with weights, in order of computation.

    Args:
        problem: The problem.
        removed: Blocks that are removed.
        widths: Channels that each group keeps, `(groups,)`.
        walk: If given, layers that it has not decided on are "undecided".

    Returns:
        Dicts with name, kind, before and after (output channels; 0 after removal), status ("kept", "shrunk", "wider", "removed",
        "inserted" or "undecided"), macs_before and macs_after.
    """
    graph = problem.graph
    view = graph.view(frozenset(removed))
    sides = view.layer_sides(widths)
    whole = graph.view(frozenset())
    before = dict.fromkeys(whole.layer_sides(graph.full), 0.0) | whole.layer_macs(graph.full)
    after = view.layer_macs(widths)
    undecided: set[str] = set()
    for decision in problem.decisions[walk.step_index :] if walk else ():
        undecided.update(decision.undecided_layers(graph))
    rows = []
    for name, layer in graph.layers.items():
        if layer.kind == "parameter":
            continue
        inputs, outputs = sides.get(name, (0, 0))
        if name not in sides and name not in before:
            continue  # what could have been inserted
        narrower = outputs < layer.channels_out or inputs != layer.channels_in
        status = (
            "removed" if name not in sides else "undecided" if name in undecided else "inserted" if name not in before
            else "wider" if outputs > layer.channels_out else "shrunk" if narrower else "kept"
        )
        rows.append(
            {
                "name": name, "kind": layer.kind, "before": layer.channels_out if name in before else 0, "after": outputs,
                "status": status, "macs_before": before.get(name, 0.0), "macs_after": after.get(name, 0.0),
            }
        )  # fmt: skip
    return rows
