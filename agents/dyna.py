"""Dyna (Sutton 1991): most episodes are played against a surrogate model of the reward, and the best of them are evaluated."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np

from compress_env.agents.policy_selection import decided
from compress_env.agents.surrogate import RewardModel, Surrogate, features, lower_bound
from compress_env.objective import Objective
from compress_env.search.agent import Policy
from compress_env.search.trial import Trial
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk

OPTIMISM = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations added to a prediction (upper confidence bound, Auer 2002), in turns: the small ones use what is known, the
large ones find out what else there is."""
PARENTS, CHANGED, DEVIATION = 5, 1.0, 1.0
"""The best so many students are mutated: one decision of each and on average so many others, widths by normal deviates of up to this
size."""
GENERATIONS, SURVIVORS = 3, 10
"""So many mutants with the highest acquisition are mutated again, and so on, so many times in all."""
BUDGETS = 5
"""At which a policy is looked at, if the objective's budget is a range."""
STATE = ("model", "limits", "round", "students", "known", "demonstrations")
"""Attributes that change while it is played."""


class Student(NamedTuple):
    """An evaluated student, or one that the model answers for.

    Attributes:
        limits: Its limits, in each resource's unit.
        reward: Its reward, or the prediction.
        actions: The actions that led to it, `(steps, 2)`.
        removed: Blocks that were removed; nothing where that does not matter.
    """

    limits: dict[str, float]
    reward: float
    actions: np.ndarray
    removed: tuple[str, ...]


class ModelEpisode(NamedTuple):
    """An episode against the model.

    Attributes:
        reward: The predicted reward.
        acquisition: The prediction with some standard deviations added; the highest is evaluated next.
        plan: The plan that it came to.
        actions: Its actions, `(steps, 2)`.
    """

    reward: float
    acquisition: float
    plan: Plan
    actions: np.ndarray


class Dyna(gym.Wrapper):
    """After a few evaluated episodes, an agent plays against a model: limits are the environment's, the reward is a prediction.

    A round is `model_episodes` episodes of the agent and `mutations` mutants of the best students so far, in generations. The one
    with the highest acquisition is then played on the environment, and the model learns from it.

    Args:
        env: A `RecordingEnv`.
        evaluated: How many episodes are evaluated before the first round.
        model_episodes: Episodes of the agent's a round.
        mutations: Mutants a round.
        seed: Of the mutations.

    Attributes:
        demonstrations: Episodes of a round that the agent did not play itself: the best mutants, and the evaluated one.
        students: All evaluated ones.
    """

    def __init__(self, env: gym.Env, evaluated: int, model_episodes: int, mutations: int, seed: int):
        super().__init__(env)
        self.evaluated, self.model_episodes, self.mutations = evaluated, model_episodes, mutations
        self.objective: Objective = env.get_wrapper_attr("objective")
        self.graph = self.objective.problem.graph
        self.model: RewardModel = Surrogate()
        self.rng = np.random.default_rng([seed, 2])
        self.limits: dict[str, float] | None = None  # of this round
        self.round: list[ModelEpisode] = []
        self.students: list[Student] = []
        self.known: set[Plan] = set()
        self.demonstrations: list[Student] = []
        self._walk: Walk | None = None
        self._actions: list[np.ndarray] = []

    @property
    def due(self) -> bool:
        """Whether a round begins with the next episode."""
        return not self.round

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, on the model unless one is to be evaluated."""
        self._actions = []
        if self.env.get_wrapper_attr("played") < self.evaluated:
            self._walk = None
            return super().reset(seed=seed, options=options)
        if self.limits is None:
            self.limits = self.objective.draw_limits(self.np_random)
        self._walk = self.objective.begin(self.limits)
        return self.objective.observe(self._walk), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """A step; on the model, the last one is rewarded with what it expects."""
        walk = self._walk
        self._actions.append(np.clip(action, -1, 1))
        if walk is None:
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated:
                self._learn(float(reward), np.array(self._actions))
            return observation, reward, terminated, truncated, info
        walk.step(*self._actions[-1].tolist())
        observation = self.objective.observe(walk)
        if not walk.done:
            return observation, 0.0, False, False, {}
        self.round += self._predicted([np.array(self._actions)], [walk])
        reward = self.round[-1].reward
        if len(self.round) == self.model_episodes:
            self._end_round()
        return observation, reward, True, False, {}

    def _predicted(self, actions: list[np.ndarray], walks: list[Walk]) -> list[ModelEpisode]:
        mean, deviation = self.model(np.array([features(self.graph, w.removed, w.widths) for w in walks]))
        acquisition = mean + OPTIMISM[len(self.students) % len(OPTIMISM)] * deviation
        plans = [self.graph.canonical(w.removed, w.widths) for w in walks]
        return [ModelEpisode(*entry) for entry in zip(mean.tolist(), acquisition.tolist(), plans, actions)]

    def plans_of(self, policy: Policy) -> np.ndarray:
        """Features `(budgets, d)` of the plans that a policy decides on, for budgets evenly spread over the objective's."""
        return np.array([decided(self.objective, policy, limits) for limits in self.objective.budgets(BUDGETS)])

    def score(self, plans: np.ndarray) -> float:
        """The reward that plans with these features are likely to reach, on average."""
        return float(lower_bound(self.model, plans).mean())

    def _parents(self, limits: dict[str, float]) -> list[np.ndarray]:
        """Actions of the best students, and of the best with other blocks removed; those with near limits, if they differ."""
        first = next(iter(limits))
        near = sorted(self.students, key=lambda s: abs(s.limits[first] - limits[first]))
        if near[0].limits[first] != near[-1].limits[first]:
            near = near[: max(2 * PARENTS, len(near) // 3)]
        best = sorted(near, key=lambda s: -s.reward)
        different: dict[tuple[str, ...], Student] = {}
        for student in best:
            different.setdefault(student.removed, student)
        return [s.actions for s in best[:PARENTS] + list(different.values())[:PARENTS]]

    def mutants(self, limits: dict[str, float]) -> list[ModelEpisode]:
        """Mutants of the best students, and of the best of these: the model is climbed, not only sampled.

        Args:
            limits: What they are to be within, in each resource's unit.
        """
        parents, found = self._parents(limits), []
        for size in np.diff(np.linspace(0, self.mutations, GENERATIONS + 1).astype(int)):
            found += self._mutated(parents, size, limits)
            parents = [m.actions for m in heapq.nlargest(SURVIVORS, found, key=lambda m: m.acquisition)]
        return found

    def _mutated(self, parents: list[np.ndarray], count: int, limits: dict[str, float]) -> list[ModelEpisode]:
        """A few decisions of a parent changed: the other choice for a block, more or less for a group."""
        steps = self.objective.steps
        mutants, walks = [], []
        for _ in range(count):
            actions = parents[self.rng.integers(len(parents))]
            changed = self.rng.random(steps) < CHANGED / steps
            changed[self.rng.integers(steps)] = True
            noise = self.rng.normal(0, self.rng.uniform(0, DEVIATION), steps)
            other = np.stack([np.where(actions[:, 0] >= 0, -0.5, 0.5), np.clip(actions[:, 1] + noise, -1, 1)], 1)
            mutants.append(np.where(changed[:, None], other, actions).astype(np.float32))
            walks.append(self._walked(mutants[-1], limits))
        return self._predicted(mutants, walks)

    def _walked(self, actions: np.ndarray, limits: dict[str, float]) -> Walk:
        walk = self.objective.begin(limits)
        for action in actions:
            walk.step(*action.tolist())
        return walk

    def _end_round(self) -> None:
        """Evaluate the new episode of the round with the highest acquisition, or any if all are known."""
        limits = self.limits
        assert limits is not None
        mutants = sorted(self.mutants(limits), key=lambda m: -m.acquisition) if self.mutations else []
        self.demonstrations = [Student(limits, m.reward, m.actions, ()) for m in mutants[: self.model_episodes]]
        candidates = self.round + mutants
        new = [c for c in candidates if c.plan not in self.known]
        chosen = max(new or candidates, key=lambda c: c.acquisition)
        teacher = self.objective.problem.cost_model.teacher
        budget = {name: f"{100 * limit / teacher[name]!r}%" for name, limit in limits.items()}
        self.env.reset(options={"budget": budget})
        reward = 0.0
        for action in chosen.actions:
            _, reward, _, _, _ = self.env.step(action)  # type: ignore[assignment]
        self._learn(float(reward), chosen.actions)
        self.demonstrations.append(self.students[-1])
        self.limits, self.round = None, []

    def _learn(self, reward: float, actions: np.ndarray) -> None:
        """Take in the episode that was evaluated just now."""
        trial: Trial = self.env.get_wrapper_attr("last")
        plan = trial.plan
        self.students.append(Student(dict(trial.limits), reward, actions, plan.removed))
        if plan in self.known:
            return
        self.known.add(plan)
        if trial.evaluation.failed:  # as bad as the worst that worked, or the scale of the others is lost
            reward = min(self.model.rewards, default=reward)
        self.model.observe(features(self.graph, frozenset(plan.removed), self.graph.widths(plan)), reward)

    def transitions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float, bool]]:
        """Observation, next observation, action, reward and end of each step of the demonstrations, which are then over."""
        for shown in self.demonstrations:
            walk = self.objective.begin(shown.limits)
            after = self.objective.observe(walk)
            for action in shown.actions:
                before = after
                walk.step(*action.tolist())
                after = self.objective.observe(walk)
                yield before, after, action, shown.reward if walk.done else 0.0, walk.done
        self.demonstrations = []

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here, between two episodes."""
        return {name: getattr(self, name) for name in STATE} | {"rng": self.rng.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.rng.bit_generator.state = state["rng"]
        self.__dict__.update({name: state[name] for name in STATE})
