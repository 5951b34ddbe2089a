"""Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), by Optuna."""

from typing import Any

import optuna

from compress_env.agents.optuna_search import OptunaSearch
from compress_env.objective import Objective


def tpe(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OptunaSearch:
    """Densities over all decisions together (multivariate), after a fifth of the students at random, as for the learning agents.

    Args:
        objective: Says how many steps there are.
        evaluations: How many students the search is to judge.
        seed: Of the sampler.
        settings: Of `optuna.samplers.TPESampler`.
    """
    defaults = dict(multivariate=True, n_startup_trials=max(1, evaluations // 5))
    return OptunaSearch(objective, optuna.samplers.TPESampler(seed=seed, **{**defaults, **settings}))
