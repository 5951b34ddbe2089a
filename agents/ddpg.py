"""Deep deterministic policy gradient (Lillicrap et al., ICLR 2016): the reference controller, with AMC's schedule."""

from typing import Any

from compress_env.agents.sb3 import OffPolicyAgent
from compress_env.objective import Objective


def ddpg(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OffPolicyAgent:
    """AMC's schedule with a learning rate of 1e-3, smaller networks, several updates a transition, and noise that decays.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `OffPolicyAgent`, and of the algorithm.
    """
    defaults: dict[str, Any] = dict(tau=0.01)
    return OffPolicyAgent("DDPG", objective, evaluations, seed, **{**defaults, **settings})
