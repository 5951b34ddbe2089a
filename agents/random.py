"""Random search: every action uniform in [-1, 1]. Whatever learns has to beat it."""

from collections.abc import Sequence

import numpy as np

from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal


class RandomSearch(Agent):
    """Independent students, drawn within the budget.

    Args:
        objective: Says how many steps there are.
        evaluations: Not needed.
        seed: Of the draws.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int):
        self._shape, self._rng = (objective.steps, 2), np.random.default_rng(seed)

    def ask(self, n: int) -> Sequence[Proposal]:
        """Always `n` students."""
        return [Proposal(self._rng.uniform(-1, 1, self._shape)) for _ in range(n)]


random = RandomSearch
