"""The uniform student: nothing removed, all widths by the same share. One evaluation."""

from collections.abc import Sequence

import numpy as np

from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal
from compress_env.surgery.plan import Plan


class Uniform(Agent):
    """Keeps every block and the share of channels that meets the budget, whatever the actions of the environment mean.

    Args:
        objective: Says what fits.
        evaluations: Not needed; there is one student.
        seed: Of a budget that is drawn.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int):
        self.objective, self._rng, self._asked = objective, np.random.default_rng(seed), False

    def ask(self, n: int) -> Sequence[Proposal]:
        """The student, once."""
        if self._asked:
            return []
        self._asked = True
        limits = self.objective.draw_limits(self._rng)
        return [Proposal(plan=staged(self.objective, np.zeros(1), limits), limits=limits)]


def staged(objective: Objective, sparsities: np.ndarray, limits: dict[str, float]) -> Plan:
    """The plan without removals whose groups are as sparse as their stage, one after the other within the limits.

    Args:
        objective: Begins the walk.
        sparsities: Absolute actions in [-1, 1], one a stage; stages are equally many groups in the order of the network.
        limits: By resource, in its unit.
    """
    walk, decisions = objective.begin(limits, "absolute"), objective.problem.decisions
    groups = sum(d.shrinks for d in decisions)
    done = 0
    while not walk.done:
        stage = min(done * len(sparsities) // max(groups, 1), len(sparsities) - 1)
        done += walk.current.shrinks
        walk.step(1.0, float(sparsities[stage]))
    return objective.problem.graph.canonical(walk.removed, walk.widths)


uniform = Uniform
