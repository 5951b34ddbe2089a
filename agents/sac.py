"""Soft actor-critic (Haarnoja et al., ICML 2018)."""

from compress_env.agents.sb3 import StableBaselinesAgent


def sac(env, episodes: int, seed: int) -> StableBaselinesAgent:
    """A fixed entropy coefficient: tuned automatically, the entropy outweighs the reward and nothing is learned."""
    return StableBaselinesAgent("SAC", env, episodes, seed, noise=None, ent_coef=0.1)
