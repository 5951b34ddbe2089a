"""Proximal policy optimisation (Schulman et al., 2017)."""

from compress_env.agents.policy_selection import rehearses
from compress_env.agents.sb3 import StableBaselinesAgent

EPISODES = 4
"""Students a roll-out: fewer give too noisy a gradient, more give too few updates in a search of a few hundred."""
CHEAP = 2048
"""Steps a roll-out where students are not evaluated, but judged by a model (`SurrogateEnv`): many, for a gradient without much noise."""
UPDATES = 20
"""Of those roll-outs there are at least so many, which are shorter if need be."""


def ppo(env, episodes: int, seed: int, **settings) -> StableBaselinesAgent:
    """Monte-Carlo returns, since only the end is rewarded; a narrow initial policy around the uniform student."""
    real = EPISODES * env.unwrapped.steps
    batch = max(real, min(CHEAP, episodes * env.unwrapped.steps // UPDATES)) // 8
    rollout, batch = (8 * batch, batch) if rehearses(env) else (real, real)
    defaults = dict(
        n_steps=rollout, batch_size=batch, n_epochs=10, gamma=1.0, gae_lambda=1.0, learning_rate=1e-3,
        policy_kwargs=dict(net_arch=[64, 64], log_std_init=-0.7),
    )  # fmt: skip
    return StableBaselinesAgent("PPO", env, episodes, seed, **{**defaults, **settings})
