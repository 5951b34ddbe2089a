"""Soft actor-critic (Haarnoja et al., ICML 2018)."""

from compress_env.agents.sb3 import StableBaselinesAgent


def sac(env, episodes: int, seed: int) -> StableBaselinesAgent:
    """A small fixed entropy coefficient: tuned automatically, the entropy outweighs a reward of order 1 and nothing is learned."""
    return StableBaselinesAgent("SAC", env, episodes, seed, noise=None, ent_coef=0.005)
