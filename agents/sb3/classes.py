"""Agents from classes: a user's or a library's, with Stable-Baselines3's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from compress_env.agents.sb3.algorithm import StableBaselinesAgent
from compress_env.agents.sb3.off_policy import OffPolicyAgent
from compress_env.objective import Objective


def of_class(algorithm: type[BaseAlgorithm]) -> Callable[..., StableBaselinesAgent]:
    """The factory of an agent from a class, with what it needs for episodes that are rewarded at the end."""
    kind = OffPolicyAgent if issubclass(algorithm, OffPolicyAlgorithm) else StableBaselinesAgent

    def factory(objective: Objective, evaluations: int, seed: int, **settings: Any) -> StableBaselinesAgent:
        return kind(algorithm, objective, evaluations, seed, **settings)

    return factory
