"""Augmented random search (Mania et al., NeurIPS 2018): finite differences on the weights of a linear policy."""

from typing import Any

from compress_env.agents.sb3 import StableBaselinesAgent
from compress_env.objective import Objective


def ars(objective: Objective, evaluations: int, seed: int, **settings: Any) -> StableBaselinesAgent:
    """Four directions, both ways, an update; starts at the action 0, and steps wide enough for a few hundred students.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `StableBaselinesAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(policy="LinearPolicy", n_delta=4, n_top=2, delta_std=0.3, learning_rate=0.1)
    return StableBaselinesAgent("ARS", objective, evaluations, seed, **{**defaults, **settings})
