"""The allocation: the plan that loses least by what each decision costs alone. A few evaluations, after the sensitivities' own."""

from collections.abc import Sequence

import numpy as np

from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal


class AllocationSearch(Agent):
    """The plans of which most is predicted, with more and with fewer blocks removed, the best first; a handful at most.

    Args:
        objective: Has the sensitivities.
        evaluations: Not needed; the first student is the allocation itself.
        seed: Of a budget that is drawn.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int):
        graph = objective.problem.graph
        self._limits = objective.draw_limits(np.random.default_rng(seed))
        plans = [graph.canonical(p.removed, p.widths) for p in objective.reference(self._limits).alternatives]
        self._plans = list(dict.fromkeys(plans))

    def ask(self, n: int) -> Sequence[Proposal]:
        """The next ones, none of which depends on another."""
        asked, self._plans = self._plans[:n], self._plans[n:]
        return [Proposal(plan=plan, limits=self._limits) for plan in asked]


allocation = AllocationSearch
