"""Dyna (Sutton 1991): most episodes are played against a surrogate model of the reward, and the best of them are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from compress_env.agents.model import Candidate, RewardModel, Student
from compress_env.agents.policy_selection import decided
from compress_env.agents.surrogate import lower_bound
from compress_env.allocation.solver import Allocation
from compress_env.objective import AnyWalk, Objective
from compress_env.search.agent import Policy

BUDGETS = 5
"""At which a policy is looked at, if the objective's budget is a range."""
STATE = ("limits", "round", "demonstrations")
MODEL_STATE = ("surrogate", "students", "known")
"""Attributes that change while it is played, of this and of the model."""


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
        model: What is known of students.
    """

    def __init__(self, env: gym.Env, evaluated: int, model_episodes: int, mutations: int, seed: int):
        super().__init__(env)
        self.evaluated, self.model_episodes = evaluated, model_episodes
        self.objective: Objective = env.get_wrapper_attr("objective")
        self.model = RewardModel(self.objective, mutations, np.random.default_rng([seed, 2]))
        self.limits: dict[str, float] | None = None  # of this round
        self.round: list[Candidate] = []
        self.demonstrations: list[Student] = []
        self._walk: AnyWalk | None = None
        self._actions: list[float] = []
        self._paid = 0.0

    @property
    def due(self) -> bool:
        """Whether a round begins with the next episode."""
        return not self.round

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, on the model unless one is to be evaluated."""
        self._actions, self._paid = [], 0.0
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
        action = np.clip(action, -1, 1)
        decisions = self.objective.problem.decisions
        self._actions.append(float(action[decisions[len(self._actions)].column]))
        if walk is None:
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated:
                self._learn(np.array(self._actions))
            return observation, reward, terminated, truncated, info
        walk.step(*action.tolist())
        if walk.done:
            plan = Allocation(walk.removed, walk.widths)
            self.round += self.model.candidates([np.array(self._actions)], [plan], walk.limits)
        reward = self._rewarded(walk, self.round[-1].reward if walk.done else 0.0)
        observation, done = self.objective.observe(walk), walk.done
        if len(self.round) == self.model_episodes:
            self._end_round()
        return observation, reward, done, False, {}

    def _rewarded(self, walk: AnyWalk, final: float) -> float:
        """The reward of the step that a walk has come to, as of the environment; `final` at the end of the episode adds up."""
        if not walk.done and not self.objective.spec.shaping:
            return 0.0
        total = final if walk.done else self.objective.predicted(walk)
        change, self._paid = total - self._paid, total
        return change

    def plans_of(self, policy: Policy) -> np.ndarray:
        """The plans that a policy decides on, as by `point`, `(budgets, d)`, for budgets evenly spread over the objective's."""
        return np.array([decided(self.objective, policy, limits) for limits in self.objective.budgets(BUDGETS)])

    def score(self, plans: np.ndarray) -> float:
        """The reward that these plans are likely to reach, on average."""
        return float(lower_bound(self.model.surrogate, plans).mean())

    def _end_round(self) -> None:
        """Evaluate the new episode of the round with the highest acquisition, or any if all are known."""
        limits = self.limits
        assert limits is not None
        mutants = sorted(self.model.mutants(limits), key=lambda m: -m.acquisition) if self.model.mutations else []
        self.demonstrations = [Student(limits, m.reward, m.actions, ()) for m in mutants[: self.model_episodes]]
        (chosen,) = self.model.new([*self.round, *mutants], 1)
        teacher = self.objective.problem.cost_model.teacher
        budget = {name: f"{100 * limit / teacher[name]!r}%" for name, limit in limits.items()}
        self.env.reset(options={"budget": budget})
        for value in chosen.actions:
            self.env.step(np.full(2, value, np.float32))
        self._learn(chosen.actions)
        self.demonstrations.append(self.model.students[-1])
        self.limits, self.round = None, []

    def _learn(self, actions: np.ndarray) -> None:
        """Take in the episode that was evaluated just now."""
        self.model.learn(self.env.get_wrapper_attr("last"), actions)

    def transitions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float, bool]]:
        """Observation, next observation, action, reward and end of each step of the demonstrations, which are then over."""
        for shown in self.demonstrations:
            walk = self.objective.begin(shown.limits)
            after, self._paid = self.objective.observe(walk), 0.0
            for value in shown.actions.tolist():
                before = after
                walk.step(value, value)
                after = self.objective.observe(walk)
                yield before, after, np.full(2, value, np.float32), self._rewarded(walk, shown.reward), walk.done
        self.demonstrations = []

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here, between two episodes."""
        found = {name: getattr(self, name) for name in STATE} | {name: getattr(self.model, name) for name in MODEL_STATE}
        return found | {"rng": self.model.rng.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.model.rng.bit_generator.state = state["rng"]
        self.__dict__.update({name: state[name] for name in STATE})
        self.model.__dict__.update({name: state[name] for name in MODEL_STATE})
