"""The steps of a walk: which block goes, how far a group shrinks. Each knows what it acts on and which of the two actions it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from compress_env.errors import NothingToDecide, UserError
from compress_env.registry import unknown
from compress_env.spec import SCHEDULES
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Layer

NO_CHOICE = ("norm", "parameter")
"""Kinds of layers that no decision is about."""


class Walking(Protocol):
    """What is left of the teacher by the decisions so far."""

    def has_block(self, block: str) -> bool:
        """Whether the block has not gone with another one."""

    def has_group(self, group: str) -> bool:
        """Whether channels of the group are left."""


class Decider(Walking, Protocol):
    """The side of a walk that decisions act on."""

    def remove(self, block: str, keep: bool) -> None:
        """Keep a block, or remove it."""

    def shrink(self, group: str, sparsity: float) -> None:
        """Shrink a group by an action in [-1, 1]."""


@dataclass(frozen=True)
class Decision(ABC):
    """One step about `target`, the name of a block or of a group."""

    target: str
    column: ClassVar[int]
    """The entry of the action `[keep, sparsity]` that it reads."""
    shrinks: ClassVar[bool]
    """Whether it is about a width."""

    @abstractmethod
    def apply(self, walk: Decider, keep: float, sparsity: float) -> None:
        """Decide, by an action whose entries lie in [-1, 1]."""

    @abstractmethod
    def inactive(self, walk: Walking) -> bool:
        """Whether nothing is left to decide, because the target went with a block that was removed before."""

    @abstractmethod
    def undecided_layers(self, graph: LayerGraph) -> list[str]:
        """Names of the layers that are open as long as the step is not taken."""

    @abstractmethod
    def _names(self, graph: LayerGraph) -> list[str]:
        """Names of the target's layers, parts of opaque ones included."""

    def layers(self, graph: LayerGraph) -> list[Layer]:
        """The target's layers, in order, without normalisations and bare parameters."""
        layers = {graph.layer_of(n).name: graph.layer_of(n) for n in self._names(graph)}
        return [x for x in layers.values() if x.kind not in NO_CHOICE]


@dataclass(frozen=True)
class RemoveBlock(Decision):
    """Whether the block `target` goes: it does for keep below 0."""

    column = 0
    shrinks = False

    def apply(self, walk: Decider, keep: float, sparsity: float) -> None:
        """Keep the block for `keep` of at least 0, else remove it."""
        walk.remove(self.target, keep >= 0)

    def inactive(self, walk: Walking) -> bool:
        """Whether the block has vanished with another one."""
        return not walk.has_block(self.target)

    def undecided_layers(self, graph: LayerGraph) -> list[str]:
        """The block's layers."""
        return list(graph.blocks[self.target].layers)

    def _names(self, graph: LayerGraph) -> list[str]:
        return list(graph.blocks[self.target].layers)


@dataclass(frozen=True)
class InsertBlock(RemoveBlock):
    """Whether the block `target`, which the network does not have as it came, is inserted: it is for keep above 0."""

    def apply(self, walk: Decider, keep: float, sparsity: float) -> None:
        """Insert the block for `keep` above 0."""
        walk.remove(self.target, keep > 0)


@dataclass(frozen=True)
class ShrinkGroup(Decision):
    """How many channels the group `target` has: the uniform keep ratio of them for sparsity 0, fewer above, more below."""

    column = 1
    shrinks = True

    def apply(self, walk: Decider, keep: float, sparsity: float) -> None:
        """Give the group its width."""
        walk.shrink(self.target, sparsity)

    def inactive(self, walk: Walking) -> bool:
        """Whether the group's channels have vanished with a block."""
        return not walk.has_group(self.target)

    def undecided_layers(self, graph: LayerGraph) -> list[str]:
        """The layer that the group is named after."""
        return [graph.groups[self.target].layer]

    def _names(self, graph: LayerGraph) -> list[str]:
        return [m.layer for m in graph.groups[self.target].members if m.side == "out"]


def decisions(graph: LayerGraph, schedule: str) -> tuple[Decision, ...]:
    """The steps of a walk, always the same for a teacher.

    Args:
        graph: What can be removed and shrunk.
        schedule: "two-step" (first all removals, then all widths), "joint" (one pass over the layers), "removal" or "shrink".

    Raises:
        NothingToDecide: If there are none; the message says why layers are left alone.
        UserError: If the schedule is unknown.
    """
    if schedule not in SCHEDULES:
        raise UserError(unknown("schedule", schedule, list(SCHEDULES)))
    removals: list[Decision] = []
    if schedule != "shrink":
        removals = [InsertBlock(name) if name in graph.optional else RemoveBlock(name) for name in graph.blocks]
    shrinks: list[Decision] = [ShrinkGroup(name) for name in graph.groups] if schedule != "removal" else []
    chosen = [*removals, *shrinks]
    if schedule == "joint":
        position = {layer: i for i, layer in enumerate(graph.layers)}

        def place(decision: Decision) -> tuple[int, bool]:
            names = decision.undecided_layers(graph)
            return min(position[graph.layer_of(n).name] for n in names), decision.shrinks

        chosen = sorted(chosen, key=place)
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(graph.left_alone.items())[:3])
        raise NothingToDecide(f"schedule {schedule!r} leaves nothing to decide in this teacher ({reasons})")
    return tuple(chosen)
