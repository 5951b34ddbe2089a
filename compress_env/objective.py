"""`Objective`: a problem with a budget, an evaluator and a reward. The environment and every other search are made of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress_env import rewards
from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Evaluator, PlanEvaluator
from compress_env.problem import Measured, Problem
from compress_env.resources.budget import Limit, parse_budget
from compress_env.rewards import REWARDS
from compress_env.spec import EnvironmentSpec
from compress_env.surgery.plan import Plan
from compress_env.tasks import load_task
from compress_env.walk.observation import Embedding
from compress_env.walk.walk import Walk


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
        progress: Likewise.

    Attributes:
        spec: All settings.
        problem: The problem.
        hard: Whether every student has to meet its limits.

    Raises:
        UserError: If something cannot be used, before any long work.
        InfeasibleBudget: If the smallest limits are hard and cannot be met.
    """

    def __init__(
        self, spec: EnvironmentSpec, *, problem: Problem | None = None, evaluator: PlanEvaluator | None = None,
        measured: Measured | None = None, progress: bool = False,
    ):  # fmt: skip
        self.spec = spec
        self.hard = spec.constraint == "hard"
        self._budget = parse_budget(spec.budget)
        self._reward = REWARDS.get(spec.reward) if isinstance(spec.reward, str) else spec.reward
        task = load_task(spec.problem.task)
        task.losses.get(spec.evaluator.loss or task.loss)
        self.problem = problem or Problem.build(spec.problem, measured=measured, progress=progress)
        if self.hard:
            self.problem.feasible_completion(self._range(self._budget)[0])
        self._evaluator = evaluator
        self._embedding: Embedding | None = None

    @property
    def evaluator(self) -> PlanEvaluator:
        """Judges plans."""
        if self._evaluator is None:
            self._evaluator = Evaluator(self.problem, self.spec.evaluator)
        return self._evaluator

    @property
    def embedding(self) -> Embedding:
        """Makes observations."""
        if self._embedding is None:
            self._embedding = Embedding(self.problem)
        return self._embedding

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

    def budgets(self, count: int) -> list[dict[str, float]]:
        """`count` limits evenly spread over the budget, the smallest first; one if it is no range."""
        lows, highs = self._range(self._budget)
        shares = np.linspace(0, 1, count) if lows != highs else [0.0]
        return [{name: float(lows[name] + share * (highs[name] - lows[name])) for name in lows} for share in shares]

    def _range(self, budget: Mapping[str, tuple[Limit, Limit]]) -> tuple[dict[str, float], dict[str, float]]:
        """The smallest and largest limits, in each resource's unit."""
        teacher = self.problem.cost_model.teacher
        for name in budget:
            if name not in teacher:
                raise UserError(
                    f"a limit on {name} has to be in the budget of the environment, too, which then counts or measures it; it has "
                    f"{', '.join(teacher)}"
                )
        lows = {name: float(low.absolute(teacher[name])) for name, (low, _) in budget.items()}
        return lows, {name: float(high.absolute(teacher[name])) for name, (_, high) in budget.items()}

    def begin(self, limits: Mapping[str, float]) -> Walk:
        """A walk within `limits`, in each resource's unit. Raises InfeasibleBudget if they are hard and cannot be met."""
        return Walk(self.problem, limits, self.hard)

    def observe(self, walk: Walk) -> np.ndarray:
        """The observation `(entries,)` float32 of a walk's current step."""
        return self.embedding(walk)

    def reward(self, evaluation: Evaluation, limits: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """The reward of an evaluation, and the named terms that add up to it."""
        return rewards.evaluate(self._reward, evaluation, limits)

    def judge(self, walk: Walk) -> Judged:
        """The plan of a finished walk, its numbers and its reward. A plan that is known is not built again."""
        problem, limits = self.problem, walk.limits if self.hard else None
        plan, built = problem.graph.canonical(walk.removed, walk.widths), None
        measures = any(name in problem.cost_model.measured for name in limits or ())
        if measures or self.evaluator.known(plan) is None:  # where measuring decides, the plan is not settled yet
            built = problem.finish(walk.removed, walk.widths, limits, walk.completion)
            plan = built.plan
        repeated = self.evaluator.known(plan) is not None
        evaluation = self.evaluator(plan, built)
        reward, terms = self.reward(evaluation, walk.limits)
        return Judged(plan, evaluation, dict(walk.limits), float(reward), terms, repeated)
