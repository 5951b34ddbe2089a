"""What searches without learning share: an episode from a list of actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import gymnasium as gym
import numpy as np


class Baseline(ABC):
    """A search that proposes whole students. Subclasses yield actions `(steps, 2)` and are sent the reward of each."""

    def __init__(self, env: gym.Env, episodes: int, seed: int):
        self.env, self.episodes, self.seed = env, episodes, seed
        self.steps = env.unwrapped.steps

    @abstractmethod
    def proposals(self, rng: np.random.Generator):
        """A generator of actions `(steps, 2)` in [-1, 1]; `yield` returns the reward. It may end before the episodes do."""

    @staticmethod
    def actions(values) -> np.ndarray:
        """Actions `(steps, 2)` from one number in [-1, 1] a decision: a step reads the entry that it needs."""
        return np.repeat(np.asarray(values, float)[:, None], 2, axis=1)

    def run(self, checkpoint: Path | None) -> None:
        """Play the proposals. No checkpoint is needed: what was recorded is replayed without evaluation."""
        proposals = self.proposals(np.random.default_rng(self.seed))
        reward = None
        for episode in range(self.episodes):
            try:
                actions = next(proposals) if reward is None else proposals.send(reward)
            except StopIteration:
                return
            reward = self.play(actions, seed=self.seed if episode == 0 else None)

    def play(self, actions: np.ndarray, seed: int | None) -> float:
        """The reward of an episode with these actions."""
        self.env.reset(seed=seed)
        for action in actions:
            _, reward, done, _, _ = self.env.step(action.astype(np.float32))
        return reward

    def policy(self) -> None:
        """None: nothing is learned."""
        return None
