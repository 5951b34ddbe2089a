"""Proximal policy optimisation (Schulman et al., 2017)."""

from typing import Any

from compress_env.agents.policy_selection import PolicyScorer
from compress_env.agents.sb3 import StableBaselinesAgent
from compress_env.objective import Objective

EPISODES = 4
"""Students a roll-out: fewer give too noisy a gradient, more give too few updates in a search of a few hundred."""
OFFLINE = 2048
"""Steps a roll-out where students are judged by a surrogate model: many, for a gradient without much noise."""
UPDATES = 20
"""Of those roll-outs there are at least so many, which are shorter if need be."""


def ppo(objective: Objective, evaluations: int, seed: int, **settings: Any) -> StableBaselinesAgent:
    """Monte-Carlo returns, since the end decides; a narrow initial policy around the action 0.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `StableBaselinesAgent`, and of the algorithm.
    """
    rollout = batch = EPISODES * objective.steps
    if isinstance(objective, PolicyScorer):
        batch = max(batch, min(OFFLINE, evaluations * objective.steps // UPDATES)) // 8
        rollout = 8 * batch
    defaults: dict[str, Any] = dict(
        n_steps=rollout, batch_size=batch, n_epochs=10, gamma=1.0, gae_lambda=1.0, learning_rate=1e-3,
        policy_kwargs=dict(net_arch=[64, 64], log_std_init=-0.7),
    )  # fmt: skip
    return StableBaselinesAgent("PPO", objective, evaluations, seed, **{**defaults, **settings})
