"""Exploration that fits the length of a search."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.noise import ActionNoise


class DecayingNoise(ActionNoise):
    """Gaussian noise that is silent while actions are drawn at random, then shrinks with each episode.

    Silent at first because Stable-Baselines3 adds noise to random actions too, which would press them against the bounds.

    Args:
        size: Entries of an action.
        start: Standard deviation in the first episode that is not silent, in the unit of actions.
        end: Standard deviation in the last, and in further ones.
        warmup: Silent episodes.
        episodes: All of them.
    """

    def __init__(self, size: int, start: float, end: float, warmup: int, episodes: int):
        super().__init__()
        self.size, self.start, self.end, self.warmup, self.episodes = size, start, end, warmup, episodes
        self.length = max(1, episodes - warmup)
        self.decay = (end / start) ** (1 / self.length)
        self.episode = 0
        self.stride = 1

    def share(self, place: int, places: int, warmup: int) -> DecayingNoise:
        """The noise of one of several environments that are driven beside each other.

        Args:
            place: The environment's number, from 0.
            places: How many there are.
            warmup: Silent episodes.
        """
        noise = DecayingNoise(self.size, self.start, self.end, warmup, self.episodes)
        noise.stride, noise.episode = places, self.episode + 1 + place - places
        return noise

    def __call__(self) -> np.ndarray:
        """Noise `(size,)` for one step."""
        if self.episode < self.warmup:
            return np.zeros(self.size, np.float32)
        scale = self.start * self.decay ** min(self.episode - self.warmup, self.length)
        return np.random.normal(0, scale, self.size).astype(np.float32)

    def reset(self) -> None:
        """Called by Stable-Baselines3 when learning begins, the first student being done, and at the end of each episode."""
        self.episode += self.stride
