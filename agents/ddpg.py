"""Deep deterministic policy gradient (Lillicrap et al., ICLR 2016): the reference controller, with AMC's schedule."""

from compress_env.agents.sb3 import OffPolicyAgent


def ddpg(env, episodes: int, seed: int, **settings) -> OffPolicyAgent:
    """AMC's schedule with a learning rate of 1e-3, smaller networks, and noise that fits the length of the search."""
    return OffPolicyAgent("DDPG", env, episodes, seed, **{"tau": 0.01, **settings})
