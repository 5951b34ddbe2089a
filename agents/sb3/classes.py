"""Agents from classes: a user's or a library's, with Stable-Baselines3's interface, and with their own defaults."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise

from compress_env.agents.sb3.algorithm import StableBaselinesAgent
from compress_env.objective import Objective


class StockAgent(StableBaselinesAgent):
    """A class as it is, on the environment as it is: no preset, no first episode of its own, rewards as they come.

    Args:
        algorithm: The class.
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: The class's own; a number for `action_noise` is the standard deviation of Gaussian noise.
    """

    def __init__(self, algorithm: type[BaseAlgorithm], objective: Objective, evaluations: int, seed: int, **settings: Any):
        deviation = settings.get("action_noise")
        if isinstance(deviation, int | float):
            settings["action_noise"] = NormalActionNoise(np.zeros(2), np.full(2, float(deviation)))
        super().__init__(algorithm, objective, evaluations, seed, reward_scale=1.0, **deepcopy(settings))
        self.timesteps = evaluations * self.steps

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play all episodes."""
        self.build(env)
        self.learn(self.timesteps)


def of_class(algorithm: type[BaseAlgorithm]) -> Callable[..., StockAgent]:
    """The factory of an agent from a class."""

    def factory(objective: Objective, evaluations: int, seed: int, **settings: Any) -> StockAgent:
        return StockAgent(algorithm, objective, evaluations, seed, **settings)

    return factory
