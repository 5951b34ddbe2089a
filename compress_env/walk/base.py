"""What all walks have in common: how far they are, and what is left of the teacher by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from compress_env.allocation.solver import Allocation
from compress_env.decisions import Decision
from compress_env.problem import Problem
from compress_env.surgery.graph import PrunedView


class AnyWalk(ABC):
    """The state of one walk; one file a meaning of actions.

    Args:
        problem: The problem.
        limits: By resource, in its unit.

    Attributes:
        step_index: Decisions that were taken.
        previous: The last keep as executed, 0 if the last step was about a group; and the last sparsity, likewise.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, float]):
        self.problem, self.graph, self.limits = problem, problem.graph, dict(limits)
        self.step_index = 0
        self.previous = (0.0, 0.0)

    @property
    @abstractmethod
    def removed(self) -> frozenset[str]:
        """Blocks that are not as they came: removed so far, or inserted."""

    @property
    @abstractmethod
    def widths(self) -> np.ndarray:
        """Channels that each group keeps so far, `(groups,)`."""

    @abstractmethod
    def step(self, keep: float, sparsity: float) -> None:
        """Take the current decision; both actions lie in [-1, 1], and the one that is not asked for is ignored."""

    @abstractmethod
    def completed(self, allocation: Allocation) -> Allocation:
        """What is decided so far, with an allocation for the rest."""

    @abstractmethod
    def kept_by_zero(self) -> float:
        """What the action 0 keeps of the current target, in [0, 1]: of a block all or nothing, of a group a share; 0 at the end."""

    @property
    def done(self) -> bool:
        """Whether every decision is taken."""
        return self.step_index == len(self.problem.decisions)

    @property
    def current(self) -> Decision:
        """The next decision."""
        return self.problem.decisions[self.step_index]

    @property
    def view(self) -> PrunedView:
        """What is left of the teacher."""
        return self.graph.view(self.removed)

    @property
    def usage(self) -> dict[str, float]:
        """Predicted usage of what is left, in each resource's unit."""
        return self.problem.cost_model.predict_all(self.removed, self.widths)

    def has_group(self, group: str) -> bool:
        """Whether channels of the group are left."""
        return bool(self.view.alive[self.graph.group_index[group]])

    def has_block(self, block: str) -> bool:
        """Whether the block has not gone, with another one or by itself; of one that may be inserted, whether its place has not."""
        own = self.graph.blocks[block]
        return self.view.has(own.replacement if block in self.graph.optional else own.node)
