"""Model-based search: mutations of the best students are judged by a surrogate model, the most promising one is evaluated."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compress_env.agents.moves import mutated
from compress_env.agents.surrogate import Surrogate, point
from compress_env.allocation.solver import Allocation
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.search.agent import Agent, Proposal
from compress_env.search.trial import Trial
from compress_env.surgery.plan import Plan
from compress_env.walk.relative import plans_of

OPTIMISM = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations added to a prediction (upper confidence bound, Auer 2002), in turns: the small ones use what is known, the
large ones find out what else there is."""
PARENTS, CHANGED, DEVIATION = 5, 1.0, 1.0
"""The best so many students are mutated: one decision of each and on average so many others, by normal deviates of up to this size."""
FACTOR = 4.0
"""What relative actions multiply a loss by: more than in the environment, for without a model plans far away are tried blindly."""
FORCES = (0.5, 1.0, 2.0, 4.0)
"""Sizes of actions that decide about a block otherwise than the allocation."""
GENERATIONS, SURVIVORS = 3, 10
"""So many mutants with the highest acquisition are mutated again, and so on, so many times in all."""


class Student(NamedTuple):
    """An evaluated student.

    Attributes:
        limits: Its limits, in each resource's unit.
        reward: Its reward.
        actions: The actions that led to it, `(steps,)`.
        removed: Blocks that were removed.
    """

    limits: Mapping[str, float]
    reward: float
    actions: np.ndarray
    removed: tuple[str, ...]


class Candidate(NamedTuple):
    """A student that the model answers for.

    Attributes:
        reward: The predicted reward.
        acquisition: The prediction with some standard deviations added; the highest is evaluated next.
        plan: Its plan.
        actions: The actions that lead to it, `(steps,)`.
    """

    reward: float
    acquisition: float
    plan: Plan
    actions: np.ndarray


class RewardModel:
    """What is known of students, and which to try next.

    Args:
        objective: What students are judged by.
        mutations: Mutants that the model judges for each evaluated student.
        rng: Draws them.
        free: Whether relative actions stand for factors on what each decision loses as they are, and large ones, so that more or fewer
            blocks go than in the allocation; else for what the environment makes of them.

    Attributes:
        surrogate: The model.
        students: All evaluated ones.
        known: Their plans.
    """

    def __init__(self, objective: Objective, mutations: int, rng: np.random.Generator, free: bool = False):
        self.objective, self.mutations, self.rng, self.free = objective, mutations, rng, free
        self.surrogate = Surrogate()
        self.students: list[Student] = []
        self.known: set[Plan] = set()

    def plans(self, actions: Sequence[np.ndarray], limits: Mapping[str, float]) -> list[Allocation]:
        """The plans that actions, each `(steps,)`, lead to."""
        if self.objective.actions != "relative":
            return [self._walked(each, limits) for each in actions]
        allocator, reference = self.objective.allocator, self.objective.reference(limits)
        if not self.free:
            return plans_of(allocator, reference, np.array(actions))
        return allocator.solve(reference, FACTOR ** allocator.more(np.array(actions)))

    def _walked(self, actions: np.ndarray, limits: Mapping[str, float]) -> Allocation:
        walk = self.objective.begin(limits)
        for value in actions.tolist():
            walk.step(value, value)
        return Allocation(walk.removed, walk.widths)

    def plan(self, actions: np.ndarray, limits: Mapping[str, float]) -> Allocation:
        """The plan that actions `(steps,)` lead to."""
        return self.plans([actions], limits)[0]

    def first(self, limits: Mapping[str, float]) -> list[np.ndarray]:
        """Actions `(steps,)` to begin with: 0, and those for the allocations with other blocks removed, where actions can say that."""
        zero = np.zeros(self.objective.steps)
        if not (self.free and self.objective.actions == "relative"):
            return [zero]
        whole, found = self.plan(zero, limits), [zero]
        blocks = [None if d.shrinks else d.target for d in self.objective.problem.decisions]
        for other in self.objective.reference(limits).alternatives:
            signs = np.array([b and 1 - 2 * (b in other.removed) or 0 for b in blocks], float)
            differ = signs * [b in whole.removed ^ other.removed for b in blocks]
            tried = [*(force * differ for force in FORCES), FORCES[-1] * signs]  # the least first: mutants may decide otherwise
            found.append(next((a for a in tried if self.plan(a, limits).removed == other.removed), tried[-1]))
        return list({self.named(self.plan(actions, limits)): actions for actions in reversed(found)}.values())[::-1]

    def named(self, plan: Allocation) -> Plan:
        """What is built of a plan."""
        return self.objective.problem.graph.canonical(plan.removed, plan.widths)

    def learn(self, trial: Trial, actions: np.ndarray) -> None:
        """Take in a judged student and the actions `(steps,)` that led to it."""
        plan, reward = trial.plan, trial.reward
        self.students.append(Student(dict(trial.limits), reward, actions, plan.removed))
        if plan in self.known:
            return
        self.known.add(plan)
        if trial.evaluation.failed:  # as bad as the worst that worked, or the scale of the others is lost
            reward = min(self.surrogate.rewards, default=reward)
        self.surrogate.observe(point(self.objective, self.plan(actions, trial.limits), trial.limits), reward)

    def candidates(
        self, actions: Sequence[np.ndarray], plans: Sequence[Allocation], limits: Mapping[str, float]
    ) -> list[Candidate]:
        """What the model expects of plans within limits, and of the actions `(steps,)` that led to them."""
        mean, deviation = self.surrogate(np.array([point(self.objective, plan, limits) for plan in plans]))
        acquisition = mean + OPTIMISM[len(self.students) % len(OPTIMISM)] * deviation
        named = [self.named(plan) for plan in plans]
        return [Candidate(*each) for each in zip(mean.tolist(), acquisition.tolist(), named, actions)]

    def mutants(self, limits: Mapping[str, float]) -> list[Candidate]:
        """Mutants of the best students, and of the best of these: the model is climbed, not only sampled.

        Args:
            limits: What they are to be within, in each resource's unit.
        """
        parents, found = self._parents(limits), list[Candidate]()
        sizes = np.diff(np.linspace(0, self.mutations, GENERATIONS + 1).astype(int))
        for size in sizes[sizes > 0]:
            drawn = [parents[i] for i in self.rng.integers(len(parents), size=size)]
            actions = [mutated(self.objective, each, self.rng, CHANGED, DEVIATION) for each in drawn]
            found += self.candidates(actions, self.plans(actions, limits), limits)
            parents = [m.actions for m in heapq.nlargest(SURVIVORS, found, key=lambda m: m.acquisition)]
        return found

    def _parents(self, limits: Mapping[str, float]) -> list[np.ndarray]:
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

    def new(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """Those with the highest acquisition, each another plan, and none that is known unless all are."""
        different = {c.plan: c for c in sorted(candidates, key=lambda c: c.acquisition)}
        unknown = [c for plan, c in different.items() if plan not in self.known]
        return heapq.nlargest(count, unknown or list(different.values()), key=lambda c: c.acquisition)


class ModelSearch(Agent):
    """A Gaussian process about the predicted reward, and mutations of the best students; no network.

    The first students are those of the action 0 and of the allocations with more and with fewer blocks removed.

    Args:
        objective: What students are judged by.
        evaluations: Not needed.
        seed: Of everything random.
        mutations: Mutants of the best students that the model judges for each evaluated one, at least 1.

    Raises:
        UserError: If there are to be no mutations.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int, mutations: int = 300):
        if mutations < 1:
            raise UserError(f"mutations is a number of students, 1 or more; got {mutations}")
        self.objective = objective
        self._budgets, rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
        self._model = RewardModel(objective, mutations, rng, free=True)
        self._limits = objective.draw_limits(self._budgets)
        self._first: list[np.ndarray] = []
        self._asked: list[np.ndarray] = []
        self._judging: dict[int, np.ndarray] = {}

    def ask(self, n: int) -> Sequence[Proposal]:
        """The first students; when one of them has been told, as many others as are wanted."""
        if not self._first:
            self._first = self._model.first(self._limits)
        if len(self._asked) < len(self._first):
            begun = len(self._asked)
            return [self._proposal(actions, self._limits) for actions in self._first[begun : begun + n]]
        if not self._model.students:
            return []
        limits = self.objective.draw_limits(self._budgets)
        with self._model.surrogate.believing(list(self._judging.values())):
            found = self._model.new(self._model.mutants(limits), n)
        return [self._proposal(c.actions, limits) for c in found]

    def _proposal(self, actions: np.ndarray, limits: Mapping[str, float]) -> Proposal:
        plan = self._model.plan(actions, limits)
        self._judging[len(self._asked)] = point(self.objective, plan, limits)
        self._asked.append(actions)
        return Proposal(plan=self._model.named(plan), limits=limits)

    def tell(self, trials: Sequence[Trial]) -> None:
        """The model knows of their rewards from now on."""
        for trial in sorted(trials, key=lambda t: t.index):
            self._judging.pop(trial.index, None)
            self._model.learn(trial, self._asked[trial.index])

    def state(self) -> dict[str, Any]:
        """Random states, what was asked for, and the fitted kernel."""
        return {
            "budgets": self._budgets.bit_generator.state, "rng": self._model.rng.bit_generator.state,
            "asked": [actions.tolist() for actions in self._asked], "surrogate": self._model.surrogate.state(),
        }  # fmt: skip

    def resume(self, state: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        """Go on from a state."""
        self._budgets.bit_generator.state, self._model.rng.bit_generator.state = state["budgets"], state["rng"]
        self._asked = [np.array(actions, float) for actions in state["asked"]]
        self.tell(trials)
        self._model.surrogate.resume(state["surrogate"])


model = ModelSearch
