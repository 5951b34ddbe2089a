"""What a search and the full distillation after it will take on this machine, from trial evaluations and a few training steps."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace

import torch

from compress_env.contexts import one_thread
from compress_env.distill.finetune import distillation, loss_function
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import fit, predict
from compress_env.evaluator import Evaluator, PlanEvaluator
from compress_env.objective import Objective
from compress_env.spec import FinetuneSpec
from compress_env.surgery.plan import Plan

STEPS = 2
"""Training steps that are timed."""
SMALL_BATCH = 8
QUICK = 0.1
"""Seconds of a step with a small batch below which the whole batch is tried, too."""
SLACK = (0.8, 1.6)
"""Of the lower and of the upper end: what was timed once is not what is repeated, and a machine has other things to do."""
LARGE = 0.75
"""Share of the channels of a large student; unlike those of the unchanged network, all its layers are refitted."""
SAMPLE = 256
"""Validation images on which the passes of the distillation over all of them are timed."""

Range = tuple[float, float]
"""From the smallest student to the unchanged network."""


@dataclass(frozen=True)
class Estimate:
    """What work will take, from the smallest student to a large one; ranges in seconds.

    Attributes:
        evaluation: One student.
        evaluations: Students that the search judges.
        sensitivities: Students that are judged before, 0 if that has been done.
        search: Both together, without the agent's own time.
        epochs: Of the full distillation; 0 if there is none.
        distillation: The full distillation.
        memory: Bytes of main memory, at the peak.
        gpu_memory: Bytes of the GPU's memory, 0 without one.
        failed: Why a trial evaluation or a training step failed, or "".
    """

    evaluation: Range
    evaluations: int
    sensitivities: int
    search: Range
    epochs: int
    distillation: Range
    memory: float
    gpu_memory: float
    failed: str = ""

    def text(self) -> str:
        """A line that says all of it, and how sure it is."""
        parts = [f"an evaluation takes {_seconds(*self.evaluation)}"]
        before = f" and {self.sensitivities} for sensitivities before" if self.sensitivities else ""
        parts.append(f"{self.evaluations} evaluations{before} {_seconds(*self.search)} and the agent's own time")
        if self.epochs:
            parts.append(f"{self.epochs} epochs of distillation {_seconds(*self.distillation)}")
        parts.append(f"memory about {_bytes(self.memory)}" + (f", on the GPU {_bytes(self.gpu_memory)}" if self.gpu_memory else ""))
        doubt = f"; a trial failed ({self.failed})" if self.failed else ""
        return f"estimate, from trial evaluations on this machine as busy as it is: {'; '.join(parts)}{doubt}"


def estimate(objective: Objective, evaluations: int, finetuning: FinetuneSpec | None) -> Estimate:
    """Judge a large student and the smallest one, train both for a moment, and say what a run will take.

    Neither is known to the objective's evaluator afterwards, and nothing random is drawn but from generators of its own.

    Args:
        objective: What students are judged by.
        evaluations: How many the search is to judge, those aside that were recorded.
        finetuning: The full distillation after it; None if there is none.
    """
    problem, evaluator = objective.problem, objective.evaluator
    columns, smallest = problem.uniform_columns, problem.completions[0]
    large = columns[:, int(LARGE * columns.shape[1])]
    plans = [problem.graph.canonical(frozenset(), large), problem.graph.canonical(smallest.removed, smallest.widths)]
    first, failed = _timed(evaluator, plans[1])  # which warms up; where that takes long, it hardly matters
    times = [_timed(evaluator, plan) for plan in (plans if first < 1 else plans[:1])] + [(first, failed)] * (first >= 1)
    taken = [seconds for seconds, _ in times]
    failed = next((reason for _, reason in times if reason), "")
    one = (SLACK[0] * min(taken), SLACK[1] * max(taken))
    before = objective.sensitivities_left
    distillation, extra = (0.0, 0.0), 0.0
    if finetuning and not failed and isinstance(evaluator, Evaluator):
        try:
            distillation, extra = _distillation(objective, plans, finetuning)
        except Exception as error:  # noqa: BLE001 - the run itself says it again, with more about the place
            failed = f"training: {(str(error).splitlines() or [type(error).__name__])[0]}"
    count = evaluations + before
    gpu = torch.cuda.max_memory_allocated(problem.device) if problem.device.type == "cuda" else 0.0
    return Estimate(
        one, evaluations, before, (one[0] * count, one[1] * count), finetuning.epochs if finetuning else 0, distillation,
        _peak_memory() + (0.0 if gpu else extra), gpu + (extra if gpu else 0.0), failed,
    )  # fmt: skip


def _timed(evaluator: PlanEvaluator, plan: Plan) -> tuple[float, str]:
    """Seconds of an evaluation, and why it failed, or ""; the evaluator knows afterwards what it knew before."""
    known, began = evaluator.known(plan), time.perf_counter()
    evaluator.forget(plan)
    failed = evaluator(plan).failed
    taken = time.perf_counter() - began
    evaluator.forget(plan)
    if known is not None:
        evaluator.remember(plan, known)
    return taken, failed


def _distillation(objective: Objective, plans: list[Plan], spec: FinetuneSpec) -> tuple[Range, float]:
    """Seconds of a full distillation, and bytes that it needs beyond what was tried."""
    problem = objective.problem
    data, task = problem.data.few(spec.examples), problem.task
    recipe = problem.runnable(
        finetuning_recipe(len(data.train), spec.epochs, problem.device, spec.lr, spec.batch_size, accumulate=spec.accumulate)
    )
    loss = distillation(problem.whole, loss_function(task, spec.loss), 4.0, recipe.precision)

    def steps(plan: Plan, tried: Recipe) -> float:
        student, generator = problem.student(plan), torch.Generator().manual_seed(0)
        began = time.perf_counter()
        fit(student, data, tried, loss, generator)
        return (time.perf_counter() - began) / STEPS

    with one_thread():
        tried = replace(recipe, steps=STEPS, batch_size=min(SMALL_BATCH, recipe.batch_size))
        before = _peak_memory()
        steps(plans[0], tried)  # which warms up
        small = steps(plans[0], tried)
        beyond = (_peak_memory() - before) * (recipe.batch_size / tried.batch_size - 1)
        scale = recipe.batch_size / tried.batch_size
        if small < QUICK and scale > 1:
            tried, scale, beyond = replace(tried, batch_size=recipe.batch_size), 1.0, 0.0
        each = [scale * steps(plan, tried) for plan in plans]
        began = time.perf_counter()
        sample = data.validation.take(slice(SAMPLE))
        predict(problem.whole, data, sample)
        image = (time.perf_counter() - began) / len(sample)
    count = recipe.epochs * max(1, len(data.train) // recipe.batch_size)
    passes = image * ((recipe.epochs + 1) * len(data.validation) + 2 * len(data.test))
    return (SLACK[0] * (count * min(each) + passes / 2), SLACK[1] * (count * max(each) + passes)), beyond


def _peak_memory() -> float:
    """Bytes that this process has had at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else 1024 * most)


def _seconds(low: float, high: float) -> str:
    """A range in the unit that suits it."""
    unit, size = next(((u, s) for u, s in (("h", 3600.0), ("min", 60.0), ("s", 1.0)) if high >= 1.5 * s), ("ms", 1e-3))
    shown: list[str] = [_short(value / size) for value in (low, high)]
    if shown[0] == shown[1]:
        return f"about {shown[0]} {unit}"
    return f"about {_short(math.sqrt(low * high) / size)} {unit} ({shown[0]} to {shown[1]})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 9.5 else f"{value:.1f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**29 else f"{value / 2**20:.0f} MiB"


