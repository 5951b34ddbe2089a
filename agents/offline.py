"""Offline learning: an agent plays against surrogate models of the reward, one for each teacher, fitted to recorded trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from compress_env.agents.policy_selection import decided
from compress_env.agents.surrogate import Surrogate, lower_bound, point
from compress_env.allocation.solver import Allocation
from compress_env.contexts import apart
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.search.agent import DrivingAgent, Policy
from compress_env.search.run import find_agent
from compress_env.search.trial import Trial

BUDGETS = 25
"""Evenly spread over the range; an episode has one of them."""
LOOKS = 40
"""How often, while an agent learns, it is looked at whether its policy is the best so far."""
SHIFTS = {("channels out",): (-0.15, 0.3)}
"""Entries of the observation that are logarithms of sizes, and what is added to them, drawn for each episode: from a third of the
channels to twelve times as many. Decisions are then about what is lost and saved, which means the same in other teachers, and not
about absolute sizes."""
MOST = 600
"""Recorded students of a teacher that its model takes in, at most; it takes the cube of them to fit."""


class SurrogateTeacher:
    """A teacher and a surrogate model of the reward of its students.

    Args:
        objective: The teacher's, with the budgets to learn for. It evaluates nothing, and no data is loaded.
        trials: Of this teacher, of whatever agents and budgets, two at least.
        rng: Draws which trials the model is fitted to, where there are too many.
    """

    def __init__(self, objective: Objective, trials: Sequence[Trial], rng: np.random.Generator):
        self.objective, self.model = objective, Surrogate()
        graph = objective.problem.graph
        known = list({t.plan: t for t in trials if not t.evaluation.failed}.values())
        for i in sorted(rng.permutation(len(known))[:MOST]):
            plan = known[i].plan
            parts = Allocation(plan.switched, graph.widths(plan))
            self.model.observe(point(objective, parts, known[i].limits), known[i].reward)
        self.limits = objective.budgets(BUDGETS)
        zero = np.zeros(2, np.float32)
        self.zero = lower_bound(self.model, np.array([decided(objective, lambda _: zero, x) for x in self.limits]))
        self.gap = np.maximum(max(self.model.rewards) - self.zero, 0.02 * np.ptp(self.model.rewards))

    def gain(self, plans: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """The reward that plans are likely to gain over those of the action 0.

        Args:
            plans: As by `point`, `(n, d)`.
            budgets: For each the number of its budget, `(n,)`.

        Returns:
            `(n,)`: 0 for those of the action 0, 1 for the best reward that was recorded at any budget.
        """
        return (lower_bound(self.model, plans) - self.zero[budgets]) / self.gap[budgets]


class SurrogateObjective:
    """Several teachers in place of an `Objective`, for agents that drive an environment; it scores policies, too.

    Args:
        teachers: All observe the same entries.
        episodes: How many there are to be.

    Attributes:
        steps: Of the longest episodes.
        embedding: Names and bounds of the entries of observations.
        actions: What actions mean, "relative" or "absolute"; the same for all.
        played: Episodes that were finished.

    Raises:
        UserError: If the teachers observe different entries.
    """

    def __init__(self, teachers: Sequence[SurrogateTeacher], episodes: int):
        self.teachers = list(teachers)
        self.embedding, self.actions = teachers[0].objective.embedding, teachers[0].objective.actions
        for teacher in self.teachers[1:]:
            if differ := set(teacher.objective.embedding.names) ^ set(self.embedding.names):
                raise UserError(
                    f"one policy for all of these teachers needs the same resources for each; {sorted(differ)[0]!r} is not observed "
                    "of all"
                )
        self.steps = max(t.objective.steps for t in teachers)
        self.played = 0
        self.looked_at = np.arange(0, len(teachers[0].limits), 3)
        self._every = max(1, episodes // LOOKS)

    @property
    def due(self) -> bool:
        """Whether it is time for a look at the policy."""
        return self.played % self._every == 0

    def plans_of(self, policy: Policy) -> list[np.ndarray]:
        """For each teacher, the plans that `policy` decides on, as by `point`, `(budgets, d)`."""
        return [np.array([decided(t.objective, policy, t.limits[i]) for i in self.looked_at]) for t in self.teachers]

    def gains(self, plans: Sequence[np.ndarray]) -> list[float]:
        """For each teacher, the gain of its plans, the mean over budgets."""
        return [float(t.gain(own, self.looked_at).mean()) for t, own in zip(self.teachers, plans)]

    def score(self, plans: Sequence[np.ndarray]) -> float:
        """The gain of all plans, the mean over budgets and teachers."""
        return float(np.mean(self.gains(plans)))


class SurrogateEnv(gym.Env):
    """`LayerRemoval-v0` in actions and observations, with a teacher and a budget drawn for each episode, and predicted rewards.

    The reward comes at the end: the plan's `SurrogateTeacher.gain`, at least -1. The sizes that are observed are those of a
    network that is wider or narrower (`SHIFTS`; domain randomisation, Tobin et al., IROS 2017).

    Args:
        objective: The teachers.
        bar: Shows how many episodes were played.
    """

    def __init__(self, objective: SurrogateObjective, bar: tqdm):
        self.objective, self._bar = objective, bar
        embedding = objective.embedding
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Box(embedding.low, embedding.high, dtype=np.float32)
        self._sizes = [([embedding.names.index(name) for name in names], span) for names, span in SHIFTS.items()]
        self._shift = np.zeros(len(embedding.names), np.float32)

    @property
    def played(self) -> int:
        """Episodes that were finished."""
        return self.objective.played

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a teacher, a budget and a shift of sizes drawn anew."""
        super().reset(seed=seed)
        self._teacher = self.objective.teachers[self.np_random.integers(len(self.objective.teachers))]
        self._budget = int(self.np_random.integers(len(self._teacher.limits)))
        self._walk = self._teacher.objective.begin(self._teacher.limits[self._budget])
        for places, span in self._sizes:
            self._shift[places] = self.np_random.uniform(*span)
        return self._observation(), {}

    def _observation(self) -> np.ndarray:
        seen = self._teacher.objective.observe(self._walk) + self._shift
        return np.clip(seen, self.objective.embedding.low, self.objective.embedding.high)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """A step; the last one is rewarded with the gain that the teacher's model expects."""
        walk = self._walk
        walk.step(*np.clip(action, -1, 1).tolist())
        reward = 0.0
        if walk.done:
            self.objective.played += 1
            self._bar.update()
            plan = point(self._teacher.objective, Allocation(walk.removed, walk.widths), walk.limits)
            reward = max(-1.0, float(self._teacher.gain(plan[None], np.array([self._budget]))[0]))
        return self._observation(), reward, walk.done, False, {}


def learn(
    teachers: Sequence[SurrogateTeacher], agent: str, episodes: int, seed: int, path: Path,
    *, settings: Mapping[str, Any] | None = None, progress: bool = True,
) -> list[float]:  # fmt: skip
    """Let an agent play against the models of teachers, and write its policy. Nothing is evaluated; Ctrl-C ends it early.

    Args:
        teachers: What it is to learn for.
        agent: The name of an agent that drives an environment, or `module:factory`.
        episodes: How many it plays.
        seed: Of everything random.
        path: Of the policy, for `load_policy`.
        settings: Of the agent's own.
        progress: Whether to show how far it is.

    Returns:
        For each teacher the gain that is expected of the policy, the mean over budgets.

    Raises:
        UserError: If the agent leaves no policy that can be saved.
    """
    factory = find_agent(agent, settings)
    objective = SurrogateObjective(teachers, episodes)
    with (
        tqdm(total=episodes, desc=f"{agent} learns", unit="episode", disable=not progress) as bar,
        apart(),
    ):
        player = factory(objective, episodes, seed, **(settings or {}))
        if not isinstance(player, DrivingAgent) or not hasattr(player, "save_policy"):
            raise UserError(f"the agent {agent!r} leaves no policy; take one of Stable-Baselines3's, such as ddpg")
        try:
            player.drive(SurrogateEnv(objective, bar), None)
        except KeyboardInterrupt:
            bar.write(f"interrupted after {objective.played:,} episodes; what was learned so far is kept")
        player.save_policy(path)
        policy = player.policy()
        assert policy is not None
        return objective.gains(objective.plans_of(policy))
