"""Twin delayed DDPG (Fujimoto et al., ICML 2018)."""

from typing import Any

from compress_env.agents.sb3 import OffPolicyAgent
from compress_env.objective import Objective


def td3(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OffPolicyAgent:
    """As DDPG; the smaller of two critics, and noise on the target's actions.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `OffPolicyAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(tau=0.01)
    return OffPolicyAgent("TD3", objective, evaluations, seed, **{**defaults, **settings})
