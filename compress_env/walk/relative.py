"""A walk whose actions are relative to the allocation: each says how much more than its loss alone a decision matters."""

from __future__ import annotations

import numpy as np

from compress_env.allocation.allocator import Allocator
from compress_env.allocation.solver import Allocation, Reference
from compress_env.problem import Problem
from compress_env.walk.base import AnyWalk


class RelativeWalk(AnyWalk):
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
    """

    def __init__(self, problem: Problem, allocator: Allocator, reference: Reference):
        super().__init__(problem, reference.limits)
        self.allocator, self.reference = allocator, reference
        self.more = np.zeros(len(problem.decisions))
        self._plan: Allocation | None = None

    @property
    def plan(self) -> Allocation:
        """The plan of what is decided so far, with the allocation for the rest."""
        if self._plan is None and not self.more.any():
            self._plan = self.reference.allocation
        elif self._plan is None:
            weights = self.allocator.weights(self.more, self.allocator.factor(self.reference))
            (self._plan,) = self.allocator.solve(self.reference, weights[None])
        return self._plan

    @property
    def removed(self) -> frozenset[str]:
        """Blocks that the plan is without."""
        return self.plan.removed

    @property
    def widths(self) -> np.ndarray:
        """Channels that each group keeps in the plan, `(groups,)`."""
        return self.plan.widths

    def step(self, keep: float, sparsity: float) -> None:
        """Take the current decision; both actions lie in [-1, 1], and the one that is not asked for is ignored."""
        shrinks = self.current.shrinks
        more = -sparsity if shrinks else keep
        if more:
            self.more[self.step_index], self._plan = more, None
        self.previous = (0.0, sparsity) if shrinks else (keep, 0.0)
        self.step_index += 1

    def completed(self, allocation: Allocation) -> Allocation:  # noqa: ARG002 - the plan has it in it
        """The plan; the allocation is in it."""
        return self.plan

    def kept_by_zero(self) -> float:
        """What the plan as it stands keeps of the current target, in [0, 1]; 0 at the end."""
        return 0.0 if self.done else self.plan.kept(self.current, self.graph)


def plans_of(allocator: Allocator, reference: Reference, actions: np.ndarray) -> list[Allocation]:
    """The plans that whole walks lead to, many at once.

    Args:
        allocator: Of the problem.
        reference: The allocation for the limits.
        actions: One for each step of each walk, `(n, steps)` in [-1, 1].
    """
    factor = allocator.factor(reference)
    return allocator.solve(reference, np.array([allocator.weights(more, factor) for more in allocator.more(actions)]))
