"""AMC (He et al., ECCV 2018): its DDPG. `--agent amc` also sets the environment as it was there (`compress_env.presets`)."""

from __future__ import annotations

from typing import Any

from compress_env.agents.sb3.amc import EPISODES, NOISE_DECAY, WARMUP, AMCAgent
from compress_env.errors import UserError
from compress_env.objective import Objective


def amc(
    objective: Objective, evaluations: int, seed: int, *, warmup: int | None = None, noise: float = 0.5,
    noise_decay: float | None = None, actor_learning_rate: float = 1e-4, reward_momentum: float = 0.5, **settings: Any,
) -> AMCAgent:  # fmt: skip
    """The paper's settings; in searches shorter than its 400 episodes, warm-up and decay of the noise take the same share of them.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        warmup: Episodes at random before anything is learned; 100, or a quarter of a shorter search, if None.
        noise: Standard deviation of the truncated normal distribution of actions in [0, 1], until it decays.
        noise_decay: Its factor an episode; 0.95 if None, and in a shorter search what comes to the same in the end.
        actor_learning_rate: Of Adam for the actor; `learning_rate` is the critic's.
        reward_momentum: How far the baseline, a moving average of rewards, goes to the mean of each batch.
        settings: Of Stable-Baselines3's DDPG.

    Raises:
        UserError: For settings that lie outside of their range.
    """
    if warmup is not None and warmup < 0:
        raise UserError(f"warmup is a number of episodes, 0 or more; got {warmup}")
    for name, value in (("noise", noise), ("actor_learning_rate", actor_learning_rate)):
        if value <= 0:
            raise UserError(f"{name} has to be a positive number, got {value}")
    for name, share in (("noise_decay", noise_decay), ("reward_momentum", reward_momentum)):
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name} has to lie between 0 and 1, got {share}")
    if warmup is None:
        warmup = min(WARMUP, evaluations // (EPISODES // WARMUP))
    if noise_decay is None:
        noise_decay = NOISE_DECAY ** max(1.0, (EPISODES - WARMUP) / max(1, evaluations - warmup))
    return AMCAgent(
        objective, evaluations, seed, warmup=warmup, noise=noise, noise_decay=noise_decay,
        actor_learning_rate=actor_learning_rate, reward_momentum=reward_momentum, **settings,
    )  # fmt: skip
