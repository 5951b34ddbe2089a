"""Optuna's samplers (Akiba et al., KDD 2019) on whole students: one number in [-1, 1] a decision."""

from __future__ import annotations

import numpy as np
import optuna

from compress_env.agents.sequence import Baseline


class OptunaSearch(Baseline):
    """Asks `sampler` for students and tells it their rewards; the first one is the uniform student, as for the learning agents."""

    def __init__(self, env, episodes: int, seed: int, sampler: optuna.samplers.BaseSampler):
        super().__init__(env, episodes, seed)
        self.sampler = sampler

    def proposals(self, rng: np.random.Generator):
        space = {f"{i:03}": optuna.distributions.FloatDistribution(-1, 1) for i in range(self.steps)}
        loudness = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is announced on the terminal
        study = optuna.create_study(direction="maximize", sampler=self.sampler)
        optuna.logging.set_verbosity(loudness)
        study.enqueue_trial(dict.fromkeys(space, 0.0))
        while True:
            trial = study.ask(space)
            reward = yield self.actions([trial.params[name] for name in space])
            study.tell(trial, reward)
