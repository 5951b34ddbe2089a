"""Regularised evolution (Real et al., AAAI 2019): the best of a few students, mutated, takes the place of the oldest."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal
from compress_env.search.trial import Trial


class Evolution(Agent):
    """Begins with the student of the action 0 and random ones; each further one is a mutation of the best of a few that are alive.

    Args:
        objective: Says how many steps there are.
        evaluations: Not needed.
        seed: Of everything random.
        population: Students that are alive at a time.
        tournament: How many of them are drawn, the best of which is the parent.
        mutations: Decisions that are changed on average, at least 1.
        deviation: Standard deviation of a change, in the unit of actions.
    """

    def __init__(
        self, objective: Objective, evaluations: int, seed: int, population: int = 20, tournament: int = 5, mutations: float = 2.0,
        deviation: float = 0.5,
    ):  # fmt: skip
        self.population, self.tournament = population, min(tournament, population)
        self.mutations, self.deviation, self.steps = mutations, deviation, objective.steps
        self._rng = np.random.default_rng(seed)
        self._asked: list[np.ndarray] = []
        self._alive: deque[tuple[float, np.ndarray]] = deque(maxlen=population)

    def ask(self, n: int) -> Sequence[Proposal]:
        """The first population at once; then children of what is alive, for which a tournament has to have been told."""
        proposals = []
        for _ in range(n):
            if len(self._asked) < self.population:
                values = self._rng.uniform(-1, 1, self.steps) if self._asked else np.zeros(self.steps)
            elif len(self._alive) >= self.tournament:
                values = self._child()
            else:
                break
            self._asked.append(values)
            proposals.append(Proposal(np.repeat(values[:, None], 2, axis=1)))
        return proposals

    def tell(self, trials: Sequence[Trial]) -> None:
        """Each takes the place of the one that was told first; of several that are told at once, that was asked for first."""
        self._alive += [(t.reward, self._asked[t.index]) for t in sorted(trials, key=lambda t: t.index)]

    def _child(self) -> np.ndarray:
        drawn = self._rng.choice(len(self._alive), self.tournament, replace=False)
        _, parent = max((self._alive[i] for i in drawn), key=lambda entry: entry[0])
        mutated = self._rng.random(self.steps) < self.mutations / self.steps
        mutated[self._rng.integers(self.steps)] = True
        return np.clip(parent + mutated * self._rng.normal(0, self.deviation, self.steps), -1, 1)


evolution = Evolution
