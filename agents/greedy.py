"""Greedy search: from the student of the action 0, change one decision at a time and keep what is better."""

from collections.abc import Iterator

import numpy as np

from compress_env.agents.moves import neighbours
from compress_env.agents.sequence import BatchAgent, Batches


class Greedy(BatchAgent):
    """Coordinate-wise hill climbing in random order, the step halved when a whole round brings nothing."""

    def batches(self, rng: np.random.Generator) -> Batches:
        """One student at a time, since each depends on the ones before."""
        best = np.zeros((self.steps, 2))
        (found,) = yield [best]
        reward, step = found.reward, 0.5
        while True:
            improved = False
            for i in rng.permutation(self.steps):
                for candidate in self._neighbours(best, i, step):
                    (found,) = yield [candidate]
                    if found.reward > reward:
                        best, reward, improved = candidate, found.reward, True
                        break
            if not improved:
                step = max(step / 2, 0.05)

    def _neighbours(self, actions: np.ndarray, i: int, step: float) -> Iterator[np.ndarray]:
        """The actions with another choice at step i."""
        column = self.objective.problem.decisions[i].column
        for value in neighbours(self.objective, i, actions[i, column], step):
            changed = actions.copy()
            changed[i, column] = value
            yield changed


greedy = Greedy
