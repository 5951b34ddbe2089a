"""The fairer uniform baseline: one share of channels for each third of the network, the best of a few draws."""

from collections.abc import Sequence

import numpy as np

from compress_env.agents.uniform import staged
from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal

STAGES, STUDENTS = 3, 30


class Stages(Agent):
    """The uniform student, then 29 with three shares drawn at random; nothing is removed. Ends after 30 students.

    Args:
        objective: Says what fits.
        evaluations: Not needed.
        seed: Of the draws.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int):
        self.objective, self._rng = objective, np.random.default_rng(seed)
        self._left = STUDENTS
        self._first = True

    def ask(self, n: int) -> Sequence[Proposal]:
        """The next ones, none of which depends on another."""
        count = min(n, self._left)
        self._left -= count
        return [self._proposal() for _ in range(count)]

    def _proposal(self) -> Proposal:
        limits = self.objective.draw_limits(self._rng)
        sparsities = np.zeros(STAGES) if self._first else self._rng.uniform(-1, 1, STAGES)
        self._first = False
        return Proposal(plan=staged(self.objective, sparsities, limits), limits=limits)


stages = Stages
