"""Soft actor-critic (Haarnoja et al., ICML 2018)."""

from compress_env.agents.sb3 import OffPolicyAgent


def sac(env, episodes: int, seed: int, **settings) -> OffPolicyAgent:
    """A fixed entropy coefficient: tuned automatically, the entropy outweighs the reward and nothing is learned."""
    return OffPolicyAgent("SAC", env, episodes, seed, **{"noise": None, "tau": 0.01, "ent_coef": 0.1, **settings})
