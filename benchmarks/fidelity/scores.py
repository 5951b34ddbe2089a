"""Scores of the plans whose truths are known, by every way of judging them; earlier scores are read from a file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from tqdm.auto import tqdm

from benchmarks.fidelity.truths import Truth, Views, draw
from benchmarks.trained import metric
from compress_env.contexts import one_thread
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import fit
from compress_env.evaluator import Evaluator
from compress_env.failures import EvaluationFailed
from compress_env.files import JsonLines
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings
from compress_env.surgery.plan import Plan

DEFAULT = "default"
BY_WEIGHTS = "channels by weights"
EVALUATORS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    BY_WEIGHTS: {},
    "sliced": {"refit": False},
    "refit on 512 images, 1,000 judge": {"calibration_images": 512, "validation_images": 1000},
    "refit, 10 steps": {"distill_steps": 10},
}
"""Settings of each way to judge; the report looks at each one's proxy score, KL to the teacher and metric. BY_WEIGHTS keeps the
channels with the largest weights."""
TIMED = 3
"""Plans a budget on which steps of distillation are timed, beside the evaluators and in the same process."""


@dataclass(frozen=True)
class PlanScore:
    """An evaluator's numbers of a plan.

    Attributes:
        evaluator: Its name.
        settings: Its settings.
        budget: Share of the MACs.
        index: The plan's number.
        metric: Main metric on the validation images that the evaluator takes.
        agreement: Share of them with the teacher's answer.
        kl: KL(teacher || student) in nats.
        seconds: Of processor time, from the built student to the score.
    """

    evaluator: str
    settings: Mapping[str, Any]
    budget: float
    index: int
    metric: float
    agreement: float
    kl: float
    seconds: float


def score(
    problem: Problem, truths: Sequence[Truth], path: Path, evaluators: Mapping[str, dict[str, Any]] = EVALUATORS, progress: bool = True
) -> list[PlanScore]:  # fmt: skip
    """Scores of all truths' plans by all evaluators.

    Args:
        problem: The plans' problem.
        truths: The plans.
        path: Rows are appended to this file; rows with the same settings are used again, others dropped.
        evaluators: Settings by name.
        progress: Whether to show how far it is.
    """
    wanted = {name: EvaluatorSettings.of(**settings).to_json() for name, settings in evaluators.items()}
    plans = {(t.budget, t.index): Plan.from_json(t.plan) for t in truths}
    file = JsonLines(path, PlanScore)
    known = [s for s in file.read() if wanted.get(s.evaluator) == s.settings and (s.budget, s.index) in plans]
    path.parent.mkdir(parents=True, exist_ok=True)
    file.write(known)
    done = {(s.evaluator, s.budget, s.index) for s in known}
    todo = [(name, *key) for name in wanted for key in plans if (name, *key) not in done]
    current, evaluator = None, None
    for name, budget, index in tqdm(todo, desc="scoring", unit="plan", disable=not progress):
        if evaluator is None or name != current:
            current = name
            judged = by_weights(problem) if name == BY_WEIGHTS else problem
            evaluator = Evaluator(judged, EvaluatorSettings(**evaluators[name]))
        known.append(_score(evaluator, name, budget, index, plans[budget, index]))
        file.append(known[-1])
    return known


def by_weights(problem: Problem) -> Problem:
    """The same problem, whose students keep the channels with the largest weights."""
    spec = replace(problem.spec, ranking="magnitude")
    return Problem(spec, problem.teacher, problem.task, problem.data, None, progress=False)


def _score(evaluator: Evaluator, name: str, budget: float, index: int, plan: Plan) -> PlanScore:
    task, target = evaluator.task, evaluator.teacher_outputs
    student = evaluator.problem.student(plan)
    began = time.process_time()
    try:
        outputs: Tensor = evaluator.outputs(student, plan)
    except EvaluationFailed:
        outputs = torch.zeros_like(target)
    seconds = time.process_time() - began
    found = task.metrics(outputs, evaluator.validation.labels)[task.metric]
    settings = evaluator.settings.to_json()
    return PlanScore(
        name, settings, budget, index, found, task.agreement(outputs, target), task.divergence(outputs, target), seconds
    )


def sizes(problem: Problem, truths: Sequence[Truth]) -> dict[str, float]:
    """Each plan's share of the teacher's parameters."""
    found, model = {}, problem.cost_model
    for truth in truths:
        plan = Plan.from_json(truth.plan)
        view, widths = problem.graph.view(plan.switched), problem.graph.widths(plan)
        found[truth.plan] = float(model.predict("params", view, widths)) / model.teacher["params"]
    return found


def distillation_seconds(
    problem: Problem, truths: Sequence[Truth], settings: Mapping[str, Any], steps: int = 10
) -> dict[float, float]:
    """Processor seconds of distilling one plan as the truths were, for each budget, extrapolated from a few steps on a few plans.

    Measured beside the evaluators, since the truths' own seconds may come from a busy machine or from another one.

    Args:
        problem: The plans' problem.
        truths: The plans.
        settings: Of the truths.
        steps: How many are timed.
    """
    recipe = Recipe(**settings["recipe"] | {"steps": steps + 2})
    few = problem.data.head((steps + 2) * recipe.batch_size)
    function = problem.task.losses.get(settings["loss"])
    found = {}
    with one_thread():
        views = Views(problem.whole, few, 1, recipe, settings["seed"])
        for budget in dict.fromkeys(t.budget for t in truths):
            chosen = [t for t in truths if t.budget == budget][:TIMED]
            seconds = []
            for truth in chosen:
                student = problem.student(Plan.from_json(truth.plan))
                stamps: list[float] = []

                def objective(outputs: Tensor, labels: Tensor, _inputs: Tensor, rows: Tensor, stamps: list[float] = stamps) -> Tensor:
                    stamps.append(time.process_time())
                    return function(outputs, views.outputs[rows].to(outputs.device), labels, settings["temperature"])

                fit(student, views.data, views.recipe, objective, torch.Generator().manual_seed(0))
                seconds.append((stamps[-1] - stamps[1]) / (len(stamps) - 2) * truth.steps)
            found[budget] = float(np.mean(seconds))
    return found


def training_free(
    problem: Problem, seed: int, budget: float = 0.5, count: int = 100
) -> dict[str, tuple[float, float]]:
    """Students of random plans without any training: refitted ("refit"), and the channels with the largest weights ("magnitude").

    Args:
        problem: The plans' problem.
        seed: Of the plans.
        budget: Share of the MACs.
        count: How many plans.

    Returns:
        For each way the main metric, on validation and on test images, of the plan that is best on validation images; and for
        "teacher" the teacher's.
    """
    plans = draw(problem, budget, count, seed)
    found = {"teacher": _metrics(problem, problem.whole)}
    for name, judged, settings in (
        ("refit", problem, EvaluatorSettings()), ("magnitude", by_weights(problem), EvaluatorSettings(refit=False))
    ):  # fmt: skip
        evaluator = Evaluator(judged, settings)
        values = [evaluator(plan).metric for plan in tqdm(plans, desc=name, leave=False)]
        plan = plans[values.index(max(values))]
        found[name] = _metrics(problem, evaluator.prepared(plan))
    return found


def _metrics(problem: Problem, module: fx.GraphModule) -> tuple[float, float]:
    return metric(problem, module, problem.data.validation), metric(problem, module, problem.data.test)
