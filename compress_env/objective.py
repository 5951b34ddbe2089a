"""`Objective`: a problem with a budget, an evaluator and a reward. The environment and every other search are made of one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from compress_env import cache, rewards
from compress_env.allocation.allocator import Allocator
from compress_env.allocation.completion import Completed
from compress_env.allocation.sensitivities import FEW_IMAGES, Sensitivities, is_kept, measure, probes
from compress_env.allocation.solver import Allocation, Reference
from compress_env.errors import DoubtfulTeacher, UserError
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Evaluator, PlanEvaluator
from compress_env.failures import EvaluationFailed, Patience
from compress_env.own_code import code_id
from compress_env.problem import Measured, Problem
from compress_env.progress import say
from compress_env.resources.budget import Limit, parse_budget
from compress_env.rewards import REWARDS
from compress_env.spec import EnvironmentSpec, EvaluatorSettings
from compress_env.surgery.plan import Plan
from compress_env.tasks import load_task
from compress_env.tasks.doubts import CHECK, doubts
from compress_env.walk.base import AnyWalk
from compress_env.walk.observation import Embedding, bounds
from compress_env.walk.relative import RelativeWalk
from compress_env.walk.states import STATES, LayerState, state_bounds
from compress_env.walk.walk import ShareWalk, Walk


@dataclass(frozen=True)
class Judged:
    """A finished walk.

    Attributes:
        plan: The plan that it came to.
        evaluation: Its numbers.
        limits: The limits that it was for, in each resource's unit.
        reward: Its reward.
        terms: Named terms that add up to the reward.
        repeated: Whether the plan was known, so that its numbers were used again.
    """

    plan: Plan
    evaluation: Evaluation
    limits: Mapping[str, float]
    reward: float
    terms: Mapping[str, float]
    repeated: bool


class Objective:
    """A problem with a budget, an evaluator and a reward.

    Args:
        spec: All settings.
        problem: The problem of `spec.problem`, if it has been built.
        evaluator: Judges plans; `Evaluator(problem, spec.evaluator)`, made when it is first needed, if None.
        measured: Passed to `Problem.build`.
        sensitivities: What each decision costs alone, if that has been measured; else it is, when it is first needed.
        progress: Likewise.

    Attributes:
        spec: All settings.
        problem: The problem.
        hard: Whether every student has to meet its limits.
        grows: Whether the network may grow, so that nothing is predicted of students.
        predicts: Whether something in it is predicted of students by sensitivities: what actions mean, rewards or observations.
        shaped: Whether each step is rewarded, by what the decisions so far are predicted to lead to.
        actions: What actions mean, "relative", "absolute" or "share".
        own_evaluator: Whether the evaluator was given, as an object.
        limited: The resources that the budget limits.

    Raises:
        UserError: If something cannot be used, before any long work.
        InfeasibleBudget: If the smallest limits are hard and cannot be met.
        Damaged: If the sensitivities are of other decisions than the problem's.
    """

    def __init__(
        self, spec: EnvironmentSpec, *, problem: Problem | None = None, evaluator: PlanEvaluator | None = None,
        measured: Measured | None = None, sensitivities: Sensitivities | None = None, progress: bool = False,
    ):  # fmt: skip
        self.spec, self._progress = spec, progress
        self.hard = spec.constraint == "hard"
        self.grows = spec.problem.changes != "compress"
        self.shaped = spec.shaping and not self.grows
        self.actions = str(spec.actions)
        self.predicts = not self.grows and (self.actions == "relative" or self.shaped or spec.observation == "embedding")
        self._budget = parse_budget(spec.budget)
        self._reward = REWARDS.get(spec.reward) if isinstance(spec.reward, str) else spec.reward
        task = load_task(spec.problem.task)
        self._loss_code = code_id(task.losses.get(spec.evaluator.loss or task.loss))
        self.problem = problem or Problem.build(spec.problem, measured=measured, progress=progress)
        if self.hard:
            self.problem.feasible_completion(self._range(self._budget)[0])
        self._evaluator, self._patience = evaluator, Patience(spec.timeout)
        self.own_evaluator, self.limited = evaluator is not None, tuple(self._budget)
        self._final_evaluator: PlanEvaluator | None = None
        if sensitivities:
            sensitivities.check(self.problem)
        self._sensitivities = sensitivities
        self._allocator: Allocator | None = None
        self._embedding: Embedding | LayerState | None = None
        self._completed: tuple[AnyWalk, int, Completed] | None = None
        self._first: Objective | None = None
        """The one whose measurements this one shares, if it was made by `at`."""

    @property
    def evaluator(self) -> PlanEvaluator:
        """Judges plans."""
        if self._evaluator is None and self._first and isinstance(self._first.evaluator, Evaluator):
            self._evaluator = self._first.evaluator.anew()
        if self._evaluator is None:
            self._evaluator = found = Evaluator(self.problem, self.spec.evaluator, timeout=self.spec.timeout)
            self._introduce(found)
        return self._evaluator

    def _introduce(self, evaluator: Evaluator) -> None:
        """Say how good the teacher is, and what there is to doubt, before any student is judged.

        Raises:
            UserError: If the teacher itself has no reward.
        """
        problem, metrics = self.problem, evaluator.teacher_metrics
        name, metric, images = problem.teacher.name, problem.task.metric, len(evaluator.validation)
        known = f"{metric} {metrics[metric]:.1%} on {images} validation examples"
        say(f"{name}: {known}", self._progress)
        doubtful = problem.data.labelled and not self.grows  # a network that grows may be one that has not learned anything yet
        if doubtful and (doubt := doubts(problem.task, evaluator.teacher_outputs, evaluator.validation.labels)):
            warnings.warn(DoubtfulTeacher(f"the teacher {name!r} has {known}, {doubt}. {CHECK}"), stacklevel=4)
        usage = dict(problem.cost_model.teacher)
        self.reward(Evaluation(metrics, 0.0, usage, metrics, usage), self._range(self._budget)[0])

    @property
    def final_evaluator(self) -> PlanEvaluator:
        """Judges the best plans of a search on all validation images; what judges by no images judges them as before."""
        if self._final_evaluator is None and self._first and isinstance(self._first.final_evaluator, Evaluator):
            self._final_evaluator = self._first.final_evaluator.anew()
        if self._final_evaluator is None:
            own = self.evaluator
            own_kind = isinstance(own, Evaluator)
            self._final_evaluator = (
                Evaluator(self.problem, self.spec.evaluator, every_image=True, timeout=self.spec.timeout) if own_kind else own
            )
        return self._final_evaluator

    def at(self, budget: Mapping[str, Any]) -> Objective:
        """The same objective with another budget on the same resources.

        Everything that was measured or computed beforehand is shared. Which plans are known is not: a search at one budget gives the
        same trials whatever another one tried.

        Args:
            budget: As users write it.

        Raises:
            UserError: If it is on other resources, or cannot be read.
            InfeasibleBudget: If its smallest limits are hard and cannot be met.
        """
        if budget.keys() != self.spec.budget.keys():
            raise UserError(f"the budget is on {', '.join(self.spec.budget)}, and another one has to be, too; got {dict(budget)!r}")
        given = self._evaluator if self.own_evaluator else None
        other = Objective(replace(self.spec, budget=budget), problem=self.problem, evaluator=given, progress=self._progress)
        other._first = self._first or self
        return other

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and largest observations `(entries,)`, float32, for which nothing has to be measured."""
        if self.spec.observation in STATES:
            return state_bounds(self.spec.observation)
        return bounds(self.problem, not self.grows)

    @property
    def embedding(self) -> Embedding | LayerState:
        """Makes observations."""
        if self._embedding is None:
            kind = self.spec.observation
            self._embedding = (
                LayerState(self.problem, kind) if kind in STATES else Embedding(self.problem, None if self.grows else self.allocator)
            )
        return self._embedding

    @property
    def sensitivities(self) -> Sensitivities:
        """What each decision costs alone; measured when it is first asked for, unless this machine has done so before."""
        if self.grows:
            raise UserError(
                "sensitivities are of what is taken away, and this network may grow; choose another agent, such as model, cma-es or a "
                "stock one"
            )
        if self._sensitivities is None and self._first:
            self._sensitivities = self._first.sensitivities
        if self._sensitivities is None:
            self._sensitivities = measure(self.problem, self._prober(), self._sensitivities_key(), self._progress)
        return self._sensitivities

    @property
    def _probe_settings(self) -> EvaluatorSettings:
        """How sensitivities are measured: on a few images, if each of so many students would take seconds."""
        own = self.spec.evaluator
        if not self.problem.in_parts:
            return own
        return replace(own, calibration_images=min(own.calibration_images, FEW_IMAGES), validation_images=FEW_IMAGES, distill_steps=0)

    def _prober(self) -> PlanEvaluator:
        """Judges the students that sensitivities are measured with."""
        own, settings = self.evaluator, self._probe_settings
        if not isinstance(own, Evaluator) or settings == self.spec.evaluator:
            return own
        return Evaluator(self.problem, settings, timeout=self.spec.timeout)

    @property
    def sensitivities_left(self) -> int:
        """Evaluations that sensitivities will take; 0 if they are known, to this machine too, or not needed."""
        if not self.predicts or self._sensitivities is not None or is_kept(self._sensitivities_key()):
            return 0
        return len(probes(self.problem))

    @property
    def _augmentation(self) -> str:
        """How the images are changed that students are distilled on for a moment, if they are."""
        return self.problem.data.augmented if self._probe_settings.distill_steps and self.problem.data.augmentation else ""

    def _sensitivities_key(self) -> str | None:
        """A name for everything that sensitivities depend on; None if they are not to be kept."""
        evaluator, problem = self.evaluator, self.problem
        if not isinstance(evaluator, Evaluator):
            return None
        plans = [plan.to_json() for plan in probes(problem)]
        return cache.content_key(
            problem.id, problem.ranking.id, plans, self._probe_settings.to_json(), len(evaluator.validation),
            problem.device.type, evaluator.bfloat16, *filter(None, [problem.task_code, self._loss_code, self._augmentation]),
        )  # fmt: skip

    @property
    def allocator(self) -> Allocator:
        """Allocates budgets by the sensitivities."""
        if self._allocator is None:
            self._allocator = self._first.allocator if self._first else Allocator(self.problem, self.sensitivities)
        return self._allocator

    def reference(self, limits: Mapping[str, float]) -> Reference:
        """The allocation for limits, with what it costs to depart from it; for soft ones that cannot be met, as near as can be."""
        if not self.hard:
            smallest = self.problem.completions[0].needs
            limits = {name: max(limit, smallest[name]) for name, limit in limits.items()}
        return self.allocator.reference(limits)

    @property
    def steps(self) -> int:
        """Steps of a walk, always the same for a problem."""
        return len(self.problem.decisions)

    def draw_limits(self, rng: np.random.Generator, budget: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Limits for a walk, in each resource's unit.

        Args:
            rng: Draws a limit where the budget is a range.
            budget: Another budget than that of the spec, as users write it.

        Raises:
            UserError: If the budget cannot be read, or has a resource that the problem does not count.
        """
        lows, highs = self._range(self._budget if budget is None else parse_budget(budget))
        return {
            name: float(rng.uniform(lows[name], highs[name])) if highs[name] > lows[name] else lows[name] for name in lows
        }  # fmt: skip

    def checked_limits(self, limits: Mapping[str, Any]) -> dict[str, float]:
        """Limits in each resource's unit as numbers. Raises UserError for what is none, and for a resource that is not counted."""
        if not isinstance(limits, Mapping):
            raise UserError(f'limits are a mapping such as {{"macs": 3e5}}, got {limits!r}')
        for name, limit in limits.items():
            self._check_counted(name)
            if isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < float(limit) < math.inf:
                raise UserError(f"a limit is a positive number in the resource's unit, got {limit!r} for {name}")
        return {name: float(limit) for name, limit in limits.items()}

    def _check_counted(self, name: str) -> None:
        if name not in (teacher := self.problem.cost_model.teacher):
            raise UserError(
                f"a limit on {name} has to be in the budget of the environment, too, which then counts or measures it; it has "
                f"{', '.join(teacher)}"
            )

    def budgets(self, count: int) -> list[dict[str, float]]:
        """`count` limits evenly spread over the budget, the smallest first; one if it is no range."""
        lows, highs = self._range(self._budget)
        shares = np.linspace(0, 1, count) if lows != highs else [0.0]
        return [{name: float(lows[name] + share * (highs[name] - lows[name])) for name in lows} for share in shares]

    def _range(self, budget: Mapping[str, tuple[Limit, Limit]]) -> tuple[dict[str, float], dict[str, float]]:
        """The smallest and largest limits, in each resource's unit."""
        teacher = self.problem.cost_model.teacher
        for name in budget:
            self._check_counted(name)
        lows = {name: float(low.absolute(teacher[name])) for name, (low, _) in budget.items()}
        return lows, {name: float(high.absolute(teacher[name])) for name, (_, high) in budget.items()}

    def begin(self, limits: Mapping[str, float], actions: str | None = None) -> AnyWalk:
        """A walk within limits.

        Args:
            limits: By resource, in its unit.
            actions: "relative", "absolute" or "share"; the objective's if None.

        Raises:
            InfeasibleBudget: If they are hard and cannot be met.
        """
        meaning = actions or self.actions
        if meaning == "relative":
            return RelativeWalk(self.problem, self.allocator, self.reference(limits))
        return (ShareWalk if meaning == "share" else Walk)(self.problem, limits, self.hard)

    def completed(self, walk: AnyWalk) -> Completed:
        """What a walk decided so far, with the allocation for the rest, and what is predicted of that."""
        if self._completed is None or self._completed[:2] != (walk, walk.step_index):  # a step asks for it twice
            plan = walk.completed(self.reference(walk.limits).allocation)
            self._completed = (walk, walk.step_index, Completed.of(plan, self.allocator))
        return self._completed[2]

    def predicted(self, walk: AnyWalk) -> float:
        """The reward that is predicted of a walk's completion."""
        return self.reward(self.completed(walk).evaluation(self.problem.task.metric), walk.limits)[0]

    def predicted_of(self, plan: Allocation, limits: Mapping[str, float]) -> float:
        """The reward that is predicted of a plan within limits, by resource in its unit; 0 of a network that may grow."""
        if self.grows:
            return 0.0
        return self.reward(Completed.of(plan, self.allocator).evaluation(self.problem.task.metric), limits)[0]

    def observe(self, walk: AnyWalk) -> np.ndarray:
        """The observation `(entries,)` float32 of a walk's current step."""
        if self.grows or self.spec.observation in STATES:
            return self.embedding(walk, None, None)
        return self.embedding(walk, self.completed(walk), self.reference(walk.limits).allocation)

    def reward(self, evaluation: Evaluation, limits: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """The reward of an evaluation, and the named terms that add up to it."""
        return rewards.evaluate(self._reward, evaluation, limits)

    def judge(self, walk: AnyWalk) -> Judged:
        """The plan of a finished walk, its numbers and its reward. A plan that is known is not built again."""
        return self.judge_plan(walk.removed, walk.widths, walk.limits)

    def judge_plan(self, removed: frozenset[str], widths: np.ndarray, limits: Mapping[str, float]) -> Judged:
        """The numbers and the reward of a plan, changed as little as needed to meet hard limits.

        Args:
            removed: Blocks that go.
            widths: Channels that the groups keep, `(groups,)`.
            limits: By resource, in its unit.
        """
        problem = self.problem
        plan, built = problem.graph.canonical(removed, widths), None
        measures = self.hard and any(name in problem.cost_model.measured for name in limits)
        if measures or self.evaluator.known(plan) is None:  # where measuring decides, the plan is not settled yet
            try:
                built = self._patience(lambda: problem.finish(removed, widths, limits if self.hard else None))
                plan = built.plan
            except EvaluationFailed:
                pass  # the evaluator meets the same fault, and records it
        repeated = self.evaluator.known(plan) is not None
        return self.judged(plan, self.evaluator(plan, built), limits, repeated)

    def judged(self, plan: Plan, evaluation: Evaluation, limits: Mapping[str, float], repeated: bool | None = None) -> Judged:
        """What `judge_plan` gives, of numbers that are there already, and are known from now on.

        Args:
            plan: The plan.
            evaluation: Its numbers.
            limits: By resource, in its unit.
            repeated: Whether the plan had been judged before; None if that is the case where it is known.
        """
        if repeated is None:
            repeated = self.evaluator.known(plan) is not None
            if not repeated and not evaluation.transient:
                self.evaluator.remember(plan, evaluation)
        reward, terms = self.reward(evaluation, limits)
        return Judged(plan, evaluation, dict(limits), float(reward), terms, repeated)
