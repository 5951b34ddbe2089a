"""A policy that another search has learned: the student that it proposes, then variations of it."""

from pathlib import Path

import numpy as np

from compress_env.agents.saved import load_policy


class SavedPolicy:
    """The first episode is the policy's own; later ones have normal deviates of size `noise` added to its actions."""

    def __init__(self, env, episodes: int, seed: int, file: str, noise: float):
        self.env, self.episodes, self.seed, self.noise = env, episodes, seed, noise
        self._policy = load_policy(file)

    def run(self, checkpoint: Path | None) -> None:
        """Play the episodes. No checkpoint is needed: what was recorded is replayed without evaluation."""
        rng = np.random.default_rng(self.seed)
        for episode in range(self.episodes):
            observation, _ = self.env.reset(seed=None if episode else self.seed)
            done = False
            while not done:
                action = self._policy(observation) + (rng.normal(0, self.noise, 2) if episode else 0)
                observation, _, done, _, _ = self.env.step(np.clip(action, -1, 1).astype(np.float32))

    def policy(self):
        """The policy as it was saved."""
        return self._policy


def policy(env, episodes: int, seed: int, *, file: str, noise: float = 0.2) -> SavedPolicy:
    """file: of `compress-env policy learn`, or the `policy.onnx` of a run folder; of whatever teacher and budget."""
    return SavedPolicy(env, episodes, seed, file, noise)
