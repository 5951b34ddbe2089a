"""Deep deterministic policy gradient (Lillicrap et al., ICLR 2016): the reference controller, with AMC's schedule."""

from compress_env.agents.sb3 import StableBaselinesAgent
from stable_baselines3 import DDPG


def ddpg(env, episodes: int, seed: int) -> StableBaselinesAgent:
    """AMC's settings, but a learning rate of 1e-3 for both networks, smaller networks and noise that fits the search's length."""
    return StableBaselinesAgent(DDPG, env, episodes, seed)
