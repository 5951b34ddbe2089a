"""Covariance matrix adaptation (Hansen & Ostermeier 2001), by Optuna and cmaes."""

from typing import Any

from compress_env.agents.optuna_search import OptunaSearch, optuna
from compress_env.objective import Objective


def cma_es(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OptunaSearch:
    """Starts around the action 0 with a deviation of a third of the way to the bounds.

    Args:
        objective: Says how many steps there are.
        evaluations: Not needed.
        seed: Of the sampler.
        settings: Of `optuna.samplers.CmaEsSampler`.
    """
    return OptunaSearch(objective, optuna.samplers.CmaEsSampler(seed=seed, **settings))
