"""CrossQ (Bhatt et al., ICLR 2024): batch normalisation in the critic in place of target networks."""

from typing import Any

from compress_env.agents.sb3 import OffPolicyAgent
from compress_env.objective import Objective


def crossq(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OffPolicyAgent:
    """As SAC; its critics are small here, since wide ones with batch normalisation are slow on CPUs.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `OffPolicyAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(
        noise=None, ent_coef=0.1, policy_kwargs={"net_arch": {"pi": [128, 128], "qf": [256, 256]}}
    )  # fmt: skip
    return OffPolicyAgent("CrossQ", objective, evaluations, seed, **{**defaults, **settings})
