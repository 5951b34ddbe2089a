"""Augmented random search (Mania et al., NeurIPS 2018): finite differences on the weights of a linear policy."""

from compress_env.agents.sb3 import StableBaselinesAgent


def ars(env, episodes: int, seed: int, **settings) -> StableBaselinesAgent:
    """Four directions, both ways, an update; starts at the uniform student, and steps wide enough for a few hundred students."""
    defaults = dict(policy="LinearPolicy", n_delta=4, n_top=2, delta_std=0.3, learning_rate=0.1)
    return StableBaselinesAgent("ARS", env, episodes, seed, **{**defaults, **settings})
