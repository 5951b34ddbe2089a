"""`parts.json`: the parts of a run's teacher that can be removed or narrowed, and how much of each resource that saves alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from compress_env.problem import Problem
from compress_env.records import Damaged, record
from compress_env.report.inspect import TreeRow, left_alone, shares, tree
from compress_env.surgery.ir import Group

PARTS = "parts.json"
"""The file of a run folder."""
LARGEST = 10**7
"""More channels than any group has."""


@dataclass(frozen=True)
class Parts:
    """A run's teacher taken apart.

    Attributes:
        rows: Its blocks, groups and what stays, as a tree; `channels` of a group are all and about half, and
            `shares` are of the latter.
        stays: Why layers stay as they are, by name.
    """

    rows: tuple[TreeRow, ...]
    stays: Mapping[str, str]

    @classmethod
    def of(cls, problem: Problem) -> Parts:
        """The parts of a problem's teacher; nothing is measured for it."""
        graph, decided = problem.graph, {(d.target, d.shrinks) for d in problem.decisions}
        stays, rows = left_alone(graph)[1], []
        for row in tree(graph, *shares(graph, problem.cost_model, half), stays):
            if row.kind == "group":
                group = graph.groups[row.name]
                row = replace(row, channels=(group.size, half(group)))
            if row.kind == "stays" or (row.name, row.kind == "group") in decided:
                rows.append(row)
        return cls(tuple(rows), stays)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parts:
        """The parts of `to_json`. Raises Damaged if it is none."""
        found = record(cls, data)
        for row in found.rows:
            size, narrow = row.channels or (1, 1)
            if not 1 <= narrow <= size <= LARGEST or not 0 <= row.depth <= LARGEST or (row.kind == "group") != bool(row.channels):
                raise Damaged(f"the row of {row.name!r} is none of a network")
        return found


def half(group: Group) -> int:
    """About half of a group's channels, as it may have them."""
    return group.allowed(group.size // 2)
