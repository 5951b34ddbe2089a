"""Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), by Optuna."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress_env.agents.optuna_search import OptunaSearch, optuna
from compress_env.objective import Objective
from compress_env.search.trial import Trial


class TPESearch(OptunaSearch):
    """Asks Optuna's sampler, whose time for one student grows with the number of earlier ones: so it can be resumed.

    Args:
        objective: Says how many steps there are.
        sampler: The sampler; it has two random states, one for the students at random.
    """

    def __init__(self, objective: Objective, sampler: optuna.samplers.TPESampler):
        super().__init__(objective, sampler)
        self._states: tuple[Any, Any] = (sampler._rng, sampler._random_sampler._rng)

    def state(self) -> dict[str, Any]:
        """Random states, and what was asked for."""
        asked = [[trial.params[name] for name in self._space] for trial in self._study.get_trials(deepcopy=False)]
        return {"rng": [_jsonable(lazy.rng.get_state()) for lazy in self._states], "asked": asked}

    def resume(self, state: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        """Go on from a state."""
        self._study = self._empty()
        for values, trial in zip(state["asked"], trials, strict=True):
            params = dict(zip(self._space, values, strict=True))
            self._study.add_trial(
                optuna.trial.create_trial(params=params, distributions=self._space, value=trial.reward)  # type: ignore[arg-type]
            )
        for lazy, found in zip(self._states, state["rng"], strict=True):
            lazy.rng.set_state((found[0], np.array(found[1], np.uint32), *found[2:]))


def tpe(objective: Objective, evaluations: int, seed: int, **settings: Any) -> TPESearch:
    """Densities over all decisions together (multivariate), after a fifth of the students at random, as for the learning agents.

    Args:
        objective: Says how many steps there are.
        evaluations: How many students the search is to judge.
        seed: Of the sampler.
        settings: Of `optuna.samplers.TPESampler`.
    """
    defaults = dict(multivariate=True, n_startup_trials=max(1, evaluations // 5))
    return TPESearch(objective, optuna.samplers.TPESampler(seed=seed, **{**defaults, **settings}))


def _jsonable(state: tuple[Any, ...]) -> list[Any]:
    name, keys, *rest = state
    return [name, keys.tolist(), *rest]
