"""The two kinds of agents: one is asked for students and told of them, the other drives an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from compress_env.search.trial import Trial

Policy = Callable[[np.ndarray], np.ndarray]
"""From an observation `(entries,)` to an action `(2,)`, without chance."""


@dataclass(frozen=True)
class Proposal:
    """A student that an agent wants to have judged.

    Attributes:
        actions: One for each step of a walk, `(steps, 2)` in [-1, 1]; a step reads one of the two entries.
        limits: Limits in each resource's unit; drawn from the budget if None.
    """

    actions: np.ndarray
    limits: Mapping[str, float] | None = None


@runtime_checkable
class Agent(Protocol):
    """Is asked for students and told of them. A factory `(objective, evaluations, seed, **settings)` makes one.

    A search that is resumed asks and tells from the beginning, with recorded trials: no state is kept but theirs.
    """

    def ask(self, n: int) -> Sequence[Proposal]:
        """At most `n` students to judge next, none if there are no more."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from the trials of all students that were asked for, in their order."""

    def policy(self) -> Policy | None:
        """The learned policy, or None for a search without one."""


@runtime_checkable
class DrivingAgent(Protocol):
    """Drives an environment by itself, as Stable-Baselines3's algorithms and loops of a user's own do.

    A factory `(objective, evaluations, seed, **settings)` makes one. It may also have `save_policy(path)`, which writes the policy for
    others to use; it is called when the search is over.
    """

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play all episodes on `env`, going on from `checkpoint` if that file exists."""

    def policy(self) -> Policy | None:
        """The learned policy, or None for a search without one."""
