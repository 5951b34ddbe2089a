"""Advantage actor-critic (Mnih et al., ICML 2016), synchronous."""

from compress_env.agents.sb3 import StableBaselinesAgent


def a2c(env, episodes: int, seed: int, **settings) -> StableBaselinesAgent:
    """One update a student, with its Monte-Carlo return; a narrow initial policy around the uniform student."""
    defaults = dict(
        n_steps=env.unwrapped.steps, gamma=1.0, gae_lambda=1.0, learning_rate=1e-3, normalize_advantage=False,
        policy_kwargs=dict(net_arch=[64, 64], log_std_init=-0.7),
    )  # fmt: skip
    return StableBaselinesAgent("A2C", env, episodes, seed, **{**defaults, **settings})
