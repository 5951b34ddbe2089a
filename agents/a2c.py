"""Advantage actor-critic (Mnih et al., ICML 2016), synchronous."""

from typing import Any

from compress_env.agents.sb3 import StableBaselinesAgent
from compress_env.objective import Objective


def a2c(objective: Objective, evaluations: int, seed: int, **settings: Any) -> StableBaselinesAgent:
    """One update a student, with its Monte-Carlo return; a narrow initial policy around the action 0.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `StableBaselinesAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(
        n_steps=objective.steps, gamma=1.0, gae_lambda=1.0, learning_rate=1e-3, normalize_advantage=False,
        policy_kwargs=dict(net_arch=[64, 64], log_std_init=-0.7),
    )  # fmt: skip
    return StableBaselinesAgent("A2C", objective, evaluations, seed, **{**defaults, **settings})
