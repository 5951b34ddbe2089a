"""Greedy search: from the uniform student, change one decision at a time and keep what is better."""

import numpy as np

from compress_env.agents.sequence import Baseline


class _Greedy(Baseline):
    def proposals(self, rng):
        best = np.zeros((self.steps, 2))
        best_reward = yield best
        step = 0.5
        while True:
            improved = False
            for i in rng.permutation(self.steps):
                for candidate in self._neighbours(best, i, step):
                    reward = yield candidate
                    if reward > best_reward:
                        best, best_reward, improved = candidate, reward, True
                        break
            if not improved:
                step = max(step / 2, 0.05)

    def _neighbours(self, actions, i, step):
        """The other choice where a block is decided; a step up and down where a group is. A step reads one of both entries."""
        decision = self.env.unwrapped.problem.decisions[i]
        column, values = (0, [-1.0 if actions[i, 0] >= 0 else 1.0]) if decision.kind == "remove" else (
            1, [actions[i, 1] - step, actions[i, 1] + step])  # fmt: skip
        for value in values:
            changed = actions.copy()
            changed[i, column] = np.clip(value, -1, 1)
            yield changed


def greedy(env, episodes: int, seed: int) -> Baseline:
    """Coordinate-wise hill climbing in random order, the step halved when a whole round brings nothing."""
    return _Greedy(env, episodes, seed)
