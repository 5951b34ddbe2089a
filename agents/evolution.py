"""Regularised evolution (Real et al., AAAI 2019): the best of a few students, mutated, takes the place of the oldest."""

from collections import deque

import numpy as np

from compress_env.agents.sequence import Baseline


class _Evolution(Baseline):
    def __init__(self, env, episodes, seed, population, tournament, mutations, deviation):
        super().__init__(env, episodes, seed)
        self.population, self.tournament = population, tournament
        self.mutations, self.deviation = mutations, deviation

    def proposals(self, rng):
        alive = deque(maxlen=self.population)
        values = np.zeros(self.steps)
        while True:
            reward = yield self.actions(values)
            alive.append((reward, values))
            if len(alive) < self.population:
                values = rng.uniform(-1, 1, self.steps)
                continue
            drawn = rng.choice(len(alive), self.tournament, replace=False)
            _, parent = max((alive[i] for i in drawn), key=lambda entry: entry[0])
            mutated = rng.random(self.steps) < self.mutations / self.steps
            mutated[rng.integers(self.steps)] = True
            values = np.clip(parent + mutated * rng.normal(0, self.deviation, self.steps), -1, 1)


def evolution(
    env,
    episodes: int,
    seed: int,
    population: int = 20,
    tournament: int = 5,
    mutations: float = 2.0,
    deviation: float = 0.5,
) -> Baseline:
    """population: students alive. tournament: drawn for a parent. mutations: decisions changed on average, by `deviation`."""
    return _Evolution(env, episodes, seed, population, min(tournament, population), mutations, deviation)
