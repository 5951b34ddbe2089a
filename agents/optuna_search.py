"""Optuna's samplers (Akiba et al., KDD 2019) on whole students: one number in [-1, 1] a decision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress_env.extras import need
from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal
from compress_env.search.trial import Trial

need("an agent of Optuna's", "optuna", "cmaes")
import optuna  # noqa: E402 - a missing one has been named


class OptunaSearch(Agent):
    """Asks a sampler for students and tells it their rewards; the first is that of the action 0, as for the learning agents.

    Args:
        objective: Says how many steps there are.
        sampler: Of Optuna, with its own seed.
    """

    def __init__(self, objective: Objective, sampler: optuna.samplers.BaseSampler):
        self._space = {f"{i:03}": optuna.distributions.FloatDistribution(-1, 1) for i in range(objective.steps)}
        self._sampler = sampler
        self._study = self._empty()
        self._study.enqueue_trial(dict.fromkeys(self._space, 0.0))

    def _empty(self) -> optuna.Study:
        loudness = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is announced on the terminal
        study = optuna.create_study(direction="maximize", sampler=self._sampler)
        optuna.logging.set_verbosity(loudness)
        return study

    def ask(self, n: int) -> Sequence[Proposal]:
        """Always `n` students."""
        asked = [self._study.ask(self._space) for _ in range(n)]  # type: ignore[arg-type]
        values = [[trial.params[name] for name in self._space] for trial in asked]
        return [Proposal(np.repeat(np.array(v)[:, None], 2, axis=1)) for v in values]

    def tell(self, trials: Sequence[Trial]) -> None:
        """The sampler knows of their rewards from now on."""
        for trial in sorted(trials, key=lambda t: t.index):
            self._study.tell(trial.index, trial.reward)
