"""Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), by Optuna."""

import optuna

from compress_env.agents.optuna_search import OptunaSearch


def tpe(env, episodes: int, seed: int, **settings) -> OptunaSearch:
    """Densities over all decisions together (multivariate), after a fifth of the students at random, as for the learning agents."""
    defaults = dict(multivariate=True, n_startup_trials=max(1, episodes // 5))
    return OptunaSearch(env, episodes, seed, optuna.samplers.TPESampler(seed=seed, **{**defaults, **settings}))
