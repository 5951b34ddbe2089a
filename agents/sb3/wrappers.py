"""Wrappers between the environment and an algorithm of Stable-Baselines3: the scale of rewards, and the end of the search."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym


class RelativeReward(gym.Wrapper):
    """Rewards relative to those of one episode, step by step, times `scale`: the critic need not learn a large constant first.

    AMC subtracts a moving average for the same reason; a constant keeps what is in the replay buffer comparable.

    Args:
        env: Has episodes of always the same length.
        scale: Of the rewards.

    Attributes:
        baseline: Rewards of that episode, one a step; nothing is subtracted from steps that it lacks.
    """

    def __init__(self, env: gym.Env, scale: float):
        super().__init__(env)
        self.scale, self.baseline = scale, list[float]()
        self._at = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._at = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """The step with its relative reward."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._at += 1
        return observation, self.scaled(float(reward), self._at - 1), terminated, truncated, info

    def scaled(self, reward: float, step: int) -> float:
        """The number that the agent is given for the reward of a step."""
        return self.scale * (reward - (self.baseline[step] if step < len(self.baseline) else 0.0))


class Enough(Exception):
    """All episodes are played."""


class Limit(gym.Wrapper):
    """Ends the search when all episodes are played; on-policy algorithms collect whole batches of them and would go on.

    Args:
        env: Has `played`, the number of finished episodes.
        episodes: How many there are to be.
    """

    def __init__(self, env: gym.Env, episodes: int):
        super().__init__(env)
        self.episodes = episodes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Raises Enough where a further episode would begin."""
        if self.env.get_wrapper_attr("played") >= self.episodes:
            raise Enough
        return super().reset(seed=seed, options=options)
