"""Soft actor-critic (Haarnoja et al., ICML 2018)."""

from typing import Any

from compress_env.agents.sb3 import OffPolicyAgent
from compress_env.objective import Objective


def sac(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OffPolicyAgent:
    """A fixed entropy coefficient: tuned automatically, the entropy outweighs the reward and nothing is learned.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `OffPolicyAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(noise=None, tau=0.01, ent_coef=0.1)
    return OffPolicyAgent("SAC", objective, evaluations, seed, **{**defaults, **settings})
