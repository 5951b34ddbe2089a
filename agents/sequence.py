"""Algorithms written as generators: what comes next depends on what was told, batch by batch."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Sequence

import numpy as np

from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal
from compress_env.search.trial import Trial

Batches = Generator[Sequence[np.ndarray], list[Trial], None]
"""Yields the actions `(steps, 2)` of students that do not depend on one another, and is sent their trials, in the same order."""


class BatchAgent(Agent):
    """Asks a generator for one batch of students after the other.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int):
        self.objective, self.evaluations, self.seed = objective, evaluations, seed
        self.steps = objective.steps
        self._generator = self.batches(np.random.default_rng(seed))
        self._waiting: deque[np.ndarray] = deque()
        self._size = 0
        self._told: list[Trial] = []

    @abstractmethod
    def batches(self, rng: np.random.Generator) -> Batches:
        """The generator; it may end before all evaluations are used.

        Args:
            rng: Draws everything random.
        """

    def ask(self, n: int) -> Sequence[Proposal]:
        """The next of the batch, at most `n`; none while the rest of it is being judged."""
        self._advance()
        return [Proposal(self._waiting.popleft()) for _ in range(min(n, len(self._waiting)))]

    def tell(self, trials: Sequence[Trial]) -> None:
        """The generator goes on when the whole batch was told."""
        self._told += trials
        self._advance()

    def _advance(self) -> None:
        """Have the next batch, if this one is through."""
        if self._waiting or len(self._told) < self._size:
            return
        try:
            batch = self._generator.send(sorted(self._told, key=lambda trial: trial.index) or None)  # type: ignore[arg-type]
        except StopIteration:
            batch = []
        self._waiting, self._size, self._told = deque(batch), len(batch), []
