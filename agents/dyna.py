"""Episodes that are not evaluated: a model of the reward answers, and the most promising of them are played for real."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from compress_env.agents.policy_selection import decided
from compress_env.agents.surrogate import Surrogate, features, sure
from compress_env.search.run import Policy
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk

OPTIMISM = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations added to a prediction (upper confidence bound, Auer 2002), in turns: the small ones use what is known, the
large ones find out what else there is."""
PARENTS, CHANGED, DEVIATION = 5, 1.0, 1.0
"""Varied are the best so many students; one decision of each and on average so many others, widths by normal
deviates of up to this size."""
GENERATIONS, SURVIVORS = 3, 10
"""The most promising so many variations are varied again, and so on, so many times in all."""
BUDGETS = 5
"""At which a policy is looked at, if the environment's budget is a range."""


class Student(NamedTuple):
    """An episode that was played for real. actions: `(steps, 2)`."""

    limits: dict[str, float]
    reward: float
    actions: np.ndarray
    removed: tuple[str, ...]


class Imagined(NamedTuple):
    """An episode against the model: the predicted reward, how promising it is, the plan it came to, and its actions `(steps, 2)`."""

    reward: float
    promise: float
    plan: str
    actions: np.ndarray


class Dyna(gym.Wrapper):
    """After `real` episodes, an agent sees imagined ones: decisions and limits are the environment's own, the reward is a prediction.

    A round is `imagined` episodes of the agent and `varied` variations of the best students so far, in generations. The most promising
    one is then played on the environment, and the model learns from it (Dyna, Sutton 1991). `lessons` are the episodes of a round
    that the agent did not play itself: the best variations, and the real one.
    """

    def __init__(self, env: gym.Env, real: int, imagined: int, varied: int, seed: int):
        super().__init__(env)
        self.real, self.imagined, self.varied = real, imagined, varied
        self.problem = env.unwrapped.problem
        self.model = Surrogate()
        self.rng = np.random.default_rng([seed, 2])
        self.limits: dict[str, float] | None = None  # of the round that is being imagined
        self.round: list[Imagined] = []
        self.students: list[Student] = []
        self.known: set[str] = set()
        self.lessons: list[Student] = []
        self._episode: Walk | None = None
        self._actions: list[np.ndarray] = []

    @property
    def begins_a_round(self) -> bool:
        """Whether a round begins with the next episode."""
        return not self.round

    @property
    def lessons_a_round(self) -> int:
        """As many variations as the agent played episodes, and the real one."""
        return min(self.imagined, self.varied) + 1

    def reset(self, *, seed=None, options=None):
        self._actions = []
        if self.env.get_wrapper_attr("played") < self.real:
            self._episode = None
            return super().reset(seed=seed, options=options)
        if self.limits is None:
            self.limits = self.env.unwrapped.draw_limits()
        self._episode = self._begin(self.limits)
        return self.env.unwrapped.embedding(self._episode), {}

    def step(self, action):
        episode = self._episode
        self._actions.append(np.clip(action, -1, 1))
        if episode is None:
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated:
                self._learn(reward, info, np.array(self._actions))
            return observation, reward, terminated, truncated, info
        episode.step(*self._actions[-1].tolist())
        observation = self.env.unwrapped.embedding(episode)
        if not episode.done:
            return observation, 0.0, False, False, {}
        self.round += self._imagine([np.array(self._actions)], [episode])
        reward = self.round[-1].reward
        if len(self.round) == self.imagined:
            self._end_round()
        return observation, reward, True, False, {}

    def _begin(self, limits: dict[str, float]) -> Walk:
        return Walk(self.problem, limits, self.env.unwrapped.hard)

    def _imagine(self, actions: list[np.ndarray], episodes: list[Walk]) -> list[Imagined]:
        mean, deviation = self.model(np.array([features(self.problem.graph, e.removed, e.widths) for e in episodes]))
        promise = mean + OPTIMISM[len(self.students) % len(OPTIMISM)] * deviation
        plans = [self.problem.graph.canonical(e.removed, e.widths).key for e in episodes]
        return [Imagined(*entry) for entry in zip(mean.tolist(), promise.tolist(), plans, actions)]

    def plans_of(self, policy: Policy) -> np.ndarray:
        """Features `(budgets, d)` of the plans that a policy decides on, for budgets evenly spread over what is drawn from."""
        env = self.env.unwrapped
        return np.array([decided(env, policy, limits) for limits in env.budgets(BUDGETS)])

    def trust(self, plans: np.ndarray) -> float:
        """The reward that plans with these features are likely to reach, on average."""
        return float(sure(self.model, plans).mean())

    def _parents(self) -> list[np.ndarray]:
        """Actions of the best students, and of the best with other blocks removed; those with near limits, if they differ."""
        first = next(iter(self.limits))
        near = sorted(self.students, key=lambda s: abs(s.limits[first] - self.limits[first]))
        if near[0].limits[first] != near[-1].limits[first]:
            near = near[: max(2 * PARENTS, len(near) // 3)]
        best = sorted(near, key=lambda s: -s.reward)
        different: dict[tuple[str, ...], Student] = {}
        for student in best:
            different.setdefault(student.removed, student)
        return [s.actions for s in best[:PARENTS] + list(different.values())[:PARENTS]]

    def _variations(self) -> list[Imagined]:
        """Variations of the best students, and of the most promising of these: the model is climbed, not only sampled."""
        parents, found = self._parents(), []
        for size in np.diff(np.linspace(0, self.varied, GENERATIONS + 1).astype(int)):
            found += self._vary(parents, size)
            parents = [i.actions for i in heapq.nlargest(SURVIVORS, found, key=lambda i: i.promise)]
        return found

    def _vary(self, parents: list[np.ndarray], count: int) -> list[Imagined]:
        """A few decisions of a parent changed: the other choice for a block, more or less for a group."""
        steps = self.env.unwrapped.steps
        varied, episodes = [], []
        for _ in range(count):
            actions = parents[self.rng.integers(len(parents))]
            changed = self.rng.random(steps) < CHANGED / steps
            changed[self.rng.integers(steps)] = True
            noise = self.rng.normal(0, self.rng.uniform(0, DEVIATION), steps)
            other = np.stack([np.where(actions[:, 0] >= 0, -0.5, 0.5), np.clip(actions[:, 1] + noise, -1, 1)], 1)
            actions = np.where(changed[:, None], other, actions).astype(np.float32)
            episode = self._begin(self.limits)
            for action in actions:
                episode.step(*action.tolist())
            varied.append(actions)
            episodes.append(episode)
        return self._imagine(varied, episodes)

    def _end_round(self) -> None:
        """Play the most promising new episode of the round for real, or any if all are known."""
        variations = sorted(self._variations(), key=lambda i: -i.promise) if self.varied else []
        self.lessons = [Student(self.limits, i.reward, i.actions, ()) for i in variations[: self.imagined]]
        candidates = self.round + variations
        chosen = max([i for i in candidates if i.plan not in self.known] or candidates, key=lambda i: i.promise)
        teacher = self.env.unwrapped.cost_model.teacher
        budget = {name: f"{100 * limit / teacher[name]!r}%" for name, limit in self.limits.items()}
        self.env.reset(options={"budget": budget})
        for action in chosen.actions:
            _, reward, _, _, info = self.env.step(action)
        self._learn(reward, info, chosen.actions)
        self.lessons.append(self.students[-1])
        self.limits, self.round = None, []

    def _learn(self, reward: float, info: dict, actions: np.ndarray) -> None:
        plan = Plan.from_json(info["plan"])
        self.students.append(Student(info["budget"], reward, actions, plan.removed))
        if plan.key in self.known:
            return
        self.known.add(plan.key)
        graph = self.problem.graph
        if info["failed"]:  # as bad as the worst that worked, or the scale of the others is lost
            reward = min(self.model.rewards, default=reward)
        self.model.observe(features(graph, frozenset(plan.removed), graph.widths(plan)), reward)

    def transitions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float, bool]]:
        """Observation, next observation, action, reward and end of each step of the lessons, which are then over."""
        for lesson in self.lessons:
            episode = self._begin(lesson.limits)
            after = self.env.unwrapped.embedding(episode)
            for action in lesson.actions:
                before = after
                episode.step(*action.tolist())
                after = self.env.unwrapped.embedding(episode)
                yield before, after, action, lesson.reward if episode.done else 0.0, episode.done
        self.lessons = []

    def state(self) -> dict:
        """What `load` needs to go on from here, between two episodes."""
        return {n: getattr(self, n) for n in ("model", "rng", "limits", "round", "students", "known", "lessons")}

    def load(self, state: dict) -> None:
        """Go on from a `state`."""
        self.__dict__.update(state)
