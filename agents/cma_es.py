"""Covariance matrix adaptation (Hansen & Ostermeier 2001), by Optuna and cmaes."""

import optuna

from compress_env.agents.optuna_search import OptunaSearch


def cma_es(env, episodes: int, seed: int, **settings) -> OptunaSearch:
    """Starts around the middle of every action, the uniform student, with a deviation of a third of the way to the bounds."""
    return OptunaSearch(env, episodes, seed, optuna.samplers.CmaEsSampler(seed=seed, **settings))
