"""Twin delayed DDPG (Fujimoto et al., ICML 2018)."""

from compress_env.agents.sb3 import StableBaselinesAgent


def td3(env, episodes: int, seed: int) -> StableBaselinesAgent:
    """As DDPG; the smaller of two critics, and noise on the target's actions."""
    return StableBaselinesAgent("TD3", env, episodes, seed)
