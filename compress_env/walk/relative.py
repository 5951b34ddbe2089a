"""A walk whose actions are relative to the allocation: each says how much more than its loss alone a decision matters."""

from __future__ import annotations

import numpy as np

from compress_env.allocation.solver import Allocation, Allocator, Reference
from compress_env.decisions import Decision
from compress_env.problem import Problem
from compress_env.surgery.graph import PrunedView


class RelativeWalk:
    """The state of one walk. What is decided so far, with the allocation for the rest, is a complete plan within every limit.

    An action multiplies the loss that its block or group causes alone, and the plan is the one that loses least by the losses that
    result (Frantar & Alistarh, ICML 2022, search such coefficients). Only differences count: the mean action of all blocks is taken
    from that of each, and likewise that of all groups, those still open counting 0. So where an agent's actions are all alike, in a
    corner as well, the plan is the allocation.

    Args:
        problem: The problem.
        allocator: Of the problem.
        reference: The allocation for the limits.

    Attributes:
        more: By how much each target is to be kept rather than others of its kind, `(steps,)` in [-1, 1]; 0 where nothing is decided.
        previous: The last action of each kind: keep, 0 if the last step was about a group; and sparsity.
    """

    def __init__(self, problem: Problem, allocator: Allocator, reference: Reference):
        self.problem, self.allocator, self.reference, self.limits = problem, allocator, reference, reference.limits
        self.graph = self.problem.graph
        self.step_index = 0
        self.more = np.zeros(len(self.problem.decisions))
        self.previous = (0.0, 0.0)
        self._plan: Allocation | None = None

    @property
    def done(self) -> bool:
        """Whether every decision is taken."""
        return self.step_index == len(self.problem.decisions)

    @property
    def current(self) -> Decision:
        """The next decision."""
        return self.problem.decisions[self.step_index]

    @property
    def completion(self) -> Allocation:
        """The plan of what is decided so far, with the allocation for the rest."""
        if self._plan is None:
            self._plan = self.allocator.solve(self.reference, self.allocator.weights(self.more, self.allocator.factor(self.reference)))
        return self._plan

    @property
    def removed(self) -> frozenset[str]:
        """Blocks that the plan is without."""
        return self.completion.removed

    @property
    def widths(self) -> np.ndarray:
        """Channels that each group keeps in the plan, `(groups,)`."""
        return self.completion.widths

    @property
    def view(self) -> PrunedView:
        """What the plan leaves of the teacher."""
        return self.graph.view(self.removed)

    @property
    def usage(self) -> dict[str, float]:
        """Predicted usage of the plan, in each resource's unit."""
        return self.problem.cost_model.predict_all(self.removed, self.widths)

    def has_group(self, group: str) -> bool:
        """Whether the plan has channels of the group."""
        return bool(self.view.alive[self.graph.group_index[group]])

    def has_block(self, block: str) -> bool:
        """Whether the plan has the block."""
        return self.view.has(self.graph.blocks[block].node)

    def step(self, keep: float, sparsity: float) -> None:
        """Take the current decision; both actions lie in [-1, 1], and the one that is not asked for is ignored."""
        shrinks = self.current.shrinks
        more = -sparsity if shrinks else keep
        if more:
            self.more[self.step_index], self._plan = more, None
        self.previous = (0.0, sparsity) if shrinks else (keep, 0.0)
        self.step_index += 1
