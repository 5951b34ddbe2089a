"""`ddpg` without what sensitivities tell it, for the ablation of features: `compress-env bench run --agent benchmarks.blind:ddpg`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from compress_env.agents.ddpg import ddpg as sighted
from compress_env.objective import Objective
from compress_env.search.agent import DrivingAgent, Policy

HIDDEN = ("loss alone", "loss per cost", "rank", "allocation", "action 0", "predicted score", "predicted loss")
"""Entries of the observation that come of sensitivities; the agent sees 0."""


class Blind(DrivingAgent):
    """The preset `ddpg`, whose observations lack HIDDEN.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        settings: Of `ddpg`.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int, **settings: Any):
        self._agent = sighted(objective, evaluations, seed, **settings)
        self._seen = np.array([name not in HIDDEN for name in objective.embedding.names], np.float32)

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play all episodes."""
        self._agent.drive(gym.wrappers.TransformObservation(env, lambda seen: seen * self._seen, env.observation_space), checkpoint)

    def go_on(self, evaluations: int) -> None:
        """Another number of students."""
        self._agent.go_on(evaluations)

    def policy(self) -> Policy:
        """The actor without noise."""
        policy = self._agent.policy()
        return lambda observation: policy(observation * self._seen)


ddpg = Blind
