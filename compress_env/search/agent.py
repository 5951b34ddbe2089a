"""The two kinds of agents: one is asked for students and told of them, the other drives an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from compress_env.search.trial import Trial
from compress_env.surgery.plan import Plan

Policy = Callable[[np.ndarray], np.ndarray]
"""From an observation `(entries,)` to an action `(2,)`, without chance."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A student that an agent wants to have judged: by actions, or by its plan.

    Attributes:
        actions: One for each step of a walk, `(steps, 2)` in [-1, 1]; a step reads one of the two entries. None if there is a plan.
        limits: Limits in each resource's unit; drawn from the budget if None.
        plan: The plan; where it does not meet hard limits, the smallest student takes its place.
    """

    actions: np.ndarray | None = None
    limits: Mapping[str, float] | None = None
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if (self.actions is None) == (self.plan is None):
            raise ValueError("a proposal has actions or a plan, and not both")


@runtime_checkable
class Agent(Protocol):
    """Is asked for students and told of them. A factory `(objective, evaluations, seed, **settings)` makes one.

    Proposals are numbered from 0 in the order in which they were asked for, and the `index` of a trial is the number of its proposal.
    Trials may be told in any order, one by one or several at once. A search that is resumed asks and tells from the beginning,
    with the recorded trials: no state is kept but theirs.

    An agent need not inherit from this class; one that does has a `tell` that learns nothing, and no policy.
    """

    def ask(self, n: int) -> Sequence[Proposal]:
        """Students to judge next.

        Args:
            n: How many are wanted, at least 1.

        Returns:
            At most `n`. Fewer, or none, where the next depends on trials that were not told yet; none for good when all were told
            and the search is over.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which students to judge")

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from students that were asked for.

        Args:
            trials: Each is told once.
        """

    def policy(self) -> Policy | None:
        """The learned policy, or None for a search without one."""
        return None


@runtime_checkable
class DrivingAgent(Protocol):
    """Drives an environment by itself, as Stable-Baselines3's algorithms and loops of a user's own do.

    A factory `(objective, evaluations, seed, **settings)` makes one. It may also have `save_policy(path)`, which writes the policy for
    others to use; it is called when the search is over. One with a true `drives_several` may be given an environment whose `together`
    is not None (`RecordingEnv`): then it is to drive as many environments beside each other as that has places.
    """

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play `evaluations` episodes.

        Args:
            env: A `LayerRemovalEnv` behind a `RecordingEnv`, perhaps with a user's wrappers between them.
            checkpoint: A file for the agent's own state, to go on from if it exists; None if nothing is to be kept. An agent that
                ignores it is played again from the recorded trials, which are not evaluated again.
        """

    def policy(self) -> Policy | None:
        """The learned policy, or None for a search without one."""


@runtime_checkable
class WritesScalars(Protocol):
    """An agent, of either kind, that has scalars of its own for TensorBoard."""

    def write_scalars(self, folder: Path) -> None:
        """Write them; called before the first episode, if they are asked for.

        Args:
            folder: For folders of events. In a search that is resumed, the events of its earlier part are there.
        """


@runtime_checkable
class Extendable(Protocol):
    """An agent, of either kind, that has to know if it is to judge another number of students than it was made for.

    Agents that are asked need it only if they end by themselves, those that drive an environment always do.
    """

    def go_on(self, evaluations: int) -> None:
        """Take another number of students. Called before the first, in a search that is resumed with more evaluations, or fewer.

        Args:
            evaluations: How many the search is to judge. What was proposed with the number that the agent was made for has to be
                proposed again: schedules stay as they are, and what they end with holds on.
        """


@runtime_checkable
class Resumable(Protocol):
    """An agent that is asked, and for which that takes long: a search that is resumed had better not ask for each trial again."""

    def state(self) -> dict[str, Any]:
        """What `resume` needs beside the trials, as JSON holds it; called when all that was asked for has been told."""

    def resume(self, state: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        """Go on as the agent that gave the state, bit for bit. Called before the first student is asked for.

        Args:
            state: Of `state`.
            trials: All that it had been told, in the order in which they were asked for.
        """
