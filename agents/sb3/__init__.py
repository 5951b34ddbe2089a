"""Stable-Baselines3 on episodes with one reward, at the end. The only folder that imports stable_baselines3 and sb3_contrib."""

from compress_env.agents.sb3.algorithm import StableBaselinesAgent
from compress_env.agents.sb3.classes import of_class
from compress_env.agents.sb3.off_policy import OffPolicyAgent

__all__ = ["OffPolicyAgent", "StableBaselinesAgent", "of_class"]
