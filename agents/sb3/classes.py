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
from compress_env.errors import UserError
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


class _Spaces(gym.Env):
    """An environment with actions as ours has them, for a class to look at."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)


def _check_actions(algorithm: type[BaseAlgorithm]) -> None:
    """Raises UserError if a class says that it takes no actions that are numbers, before anything else is done."""
    try:
        algorithm("MlpPolicy", _Spaces(), device="cpu", _init_setup_model=False)  # type: ignore[call-arg]
    except Exception as error:  # noqa: BLE001 - a class of a user's own may take other arguments, and is made later
        if "action space" in str(error):
            raise UserError(
                f"{algorithm.__name__} needs discrete actions, and an action here is two numbers in [-1, 1]; choose an algorithm for "
                "continuous actions, such as stable_baselines3:SAC, TD3 or PPO"
            ) from error


def of_class(algorithm: type[BaseAlgorithm]) -> Callable[..., StockAgent]:
    """The factory of an agent from a class. Raises UserError for one that needs discrete actions."""
    _check_actions(algorithm)

    def factory(objective: Objective, evaluations: int, seed: int, **settings: Any) -> StockAgent:
        return StockAgent(algorithm, objective, evaluations, seed, **settings)

    return factory
