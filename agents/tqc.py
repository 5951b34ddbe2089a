"""Truncated quantile critics (Kuznetsov et al., ICML 2020)."""

from typing import Any

from compress_env.agents.sb3 import OffPolicyAgent
from compress_env.objective import Objective


def tqc(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OffPolicyAgent:
    """As SAC, with critics that learn the distribution of returns and leave its top out, against too much optimism.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `OffPolicyAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(noise=None, tau=0.01, ent_coef=0.1)
    return OffPolicyAgent("TQC", objective, evaluations, seed, **{**defaults, **settings})
