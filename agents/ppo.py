"""Proximal policy optimisation (Schulman et al., 2017)."""

from compress_env.agents.sb3 import StableBaselinesAgent

EPISODES = 4
"""Students a roll-out: fewer give too noisy a gradient, more give too few updates in a search of a few hundred."""


def ppo(env, episodes: int, seed: int, **settings) -> StableBaselinesAgent:
    """Monte-Carlo returns, since only the end is rewarded; a narrow initial policy around the uniform student."""
    steps = env.unwrapped.steps
    defaults = dict(
        n_steps=EPISODES * steps, batch_size=EPISODES * steps, n_epochs=10, gamma=1.0, gae_lambda=1.0, learning_rate=1e-3,
        policy_kwargs=dict(net_arch=[64, 64], log_std_init=-0.7),
    )  # fmt: skip
    return StableBaselinesAgent("PPO", env, episodes, seed, **{**defaults, **settings})
