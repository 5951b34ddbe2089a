"""Twin delayed DDPG (Fujimoto et al., ICML 2018)."""

from compress_env.agents.sb3 import OffPolicyAgent


def td3(env, episodes: int, seed: int, **settings) -> OffPolicyAgent:
    """As DDPG; the smaller of two critics, and noise on the target's actions."""
    return OffPolicyAgent("TD3", env, episodes, seed, **{"tau": 0.01, **settings})
