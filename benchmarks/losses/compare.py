"""Distillation losses against each other: the same students, images, order and number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from benchmarks.fidelity.truths import Views, distil, draw, refitter
from compress_env.contexts import one_thread
from compress_env.distill.recipes import finetuning_recipe
from compress_env.distill.train import predict
from compress_env.files import JsonLines
from compress_env.problem import Problem
from compress_env.surgery.layout import channels_last


@dataclass(frozen=True)
class LossResult:
    """A student distilled with a loss, measured on the validation images.

    Attributes:
        loss: Its name.
        lr: The peak rate.
        budget: Of the plan, as a share of the MACs.
        index: Of the plan.
        metric: Main metric.
        kl: KL(teacher || student) in nats.
    """

    loss: str
    lr: float
    budget: float
    index: int
    metric: float
    kl: float


def compare(
    problem: Problem, counts: Mapping[float, int], losses: Sequence[str], rates: Sequence[float], steps: int, path: Path,
    seed: int = 0, progress: bool = True,
) -> list[LossResult]:  # fmt: skip
    """Distil random plans with each loss and peak rate.

    Args:
        problem: The teacher and its data.
        counts: Plans by share of the MACs.
        losses: Names of the task's losses; all if empty.
        rates: Peak rates.
        steps: Batches that each student sees.
        path: Rows are appended to this file, known ones kept.
        seed: Of plans and training.
        progress: Whether to show how far it is.

    Raises:
        UserError: For unknown losses, or if the file was made with other settings.
    """
    task, data, whole = problem.task, problem.data, problem.whole
    losses = losses or task.losses.names()
    for loss in losses:
        task.losses.get(loss)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = JsonLines(path, LossResult, header=True)
    settings = {"teacher": problem.teacher.name, "training_images": len(data.train), "steps": steps, "seed": seed}
    rows = results.begin(settings)
    done = {(r.loss, r.lr, r.budget, r.index) for r in rows}
    plans = {(b, i): plan for b, n in counts.items() for i, plan in enumerate(draw(problem, b, n, seed))}
    todo = [(loss, lr, *key) for key in plans for loss in losses for lr in rates if (loss, lr, *key) not in done]
    if not todo:
        return rows
    recipe = replace(finetuning_recipe(len(data.train), 1, problem.device), steps=steps)
    with one_thread(), channels_last(whole):
        few = data.head(steps * recipe.batch_size)
        views = Views(whole, few, -(-steps * recipe.batch_size // len(few.train)), recipe, seed)
        target, refit = predict(whole, data, data.validation), refitter(problem)
        for loss, lr, budget, index in tqdm(todo, desc="distilling", unit="student", disable=not progress):
            student = refit.prepared(plans[budget, index])
            views.recipe = replace(views.recipe, lr=lr)
            distil(student, views, task, seed, loss)
            outputs = predict(student, data, data.validation)
            metric = task.metrics(outputs, data.validation.labels)[task.metric]
            rows.append(LossResult(loss, lr, budget, index, metric, task.divergence(outputs, target)))
            results.append(rows[-1])
    return rows


def table(rows: Sequence[LossResult]) -> str:
    """Markdown, a line a loss at its best rate: mean metric and KL, and the mean difference to Hinton on the same plans."""
    by: dict[tuple[str, float], dict[tuple[float, int], LossResult]] = {}
    for row in rows:
        by.setdefault((row.loss, row.lr), {})[row.budget, row.index] = row
    best: dict[str, tuple[float, float, dict[tuple[float, int], LossResult]]] = {}
    for (loss, lr), found in by.items():
        mean = float(np.mean([r.metric for r in found.values()]))
        if loss not in best or mean > best[loss][0]:
            best[loss] = (mean, lr, found)
    lines = ["| loss | rate | students | metric | against hinton | KL |", "|---|---|---|---|---|---|"]
    for loss, (mean, lr, found) in sorted(best.items(), key=lambda item: -item[1][0]):
        other = best.get("hinton", (0, 0, found))[2]
        gaps = np.array([100 * (found[k].metric - other[k].metric) for k in found if k in other])
        spread = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        kl = np.mean([r.kl for r in found.values()])
        lines.append(f"| {loss} | {lr:g} | {len(found)} | {mean:.2%} | {gaps.mean():+.2f} ± {spread:.2f} | {kl:.3f} |")
    return "\n".join(lines)
