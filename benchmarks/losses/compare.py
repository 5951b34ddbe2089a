"""Distillation losses against each other: the same students, images, order and number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from compress_env.bench.fidelity import Views, distil, draw, refitter
from compress_env.bench.results import Results
from compress_env.contexts import one_thread
from compress_env.distill.evaluator import divergence
from compress_env.distill.recipes import finetuning_recipe
from compress_env.distill.train import channels_last, predict
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.tasks.classification import accuracy
from compress_env.tasks.classification.losses import LOSSES


@dataclass(frozen=True)
class Row:
    """A student distilled with a loss at a peak rate: accuracy in [0, 1] and KL to the teacher in nats, on the validation images.

    budget, index: of its plan.
    """

    loss: str
    lr: float
    budget: float
    index: int
    accuracy: float
    kl: float


def compare(
    env: LayerRemovalEnv, counts: Mapping[float, int], losses: Sequence[str], rates: Sequence[float], steps: int, path: Path,
    seed: int = 0, progress: bool = True,
) -> list[Row]:  # fmt: skip
    """Distil `counts[budget]` random plans a budget with each loss and peak rate; rows are appended to `path`, known ones kept."""
    for loss in losses:
        LOSSES.get(loss)
    settings = {"teacher": env.teacher.name, "training_images": len(env.data.train), "steps": steps, "seed": seed}
    results = Results(path, Row, settings)
    done = {(r.loss, r.lr, r.budget, r.index) for r in results.rows}
    plans = {(b, i): plan for b, n in counts.items() for i, plan in enumerate(draw(env, b, n, seed))}
    todo = [(loss, lr, *key) for key in plans for loss in losses for lr in rates if (loss, lr, *key) not in done]
    if not todo:
        return results.rows
    recipe = replace(finetuning_recipe(len(env.data.train), 1, env.device), steps=steps)
    with one_thread(), channels_last(env.whole):
        few = env.data.head(steps * recipe.batch_size)
        views = Views(env.whole, few, -(-steps * recipe.batch_size // len(few.train)), recipe, seed)
        target, refit = predict(env.whole, env.data, env.data.validation), refitter(env)
        for loss, lr, budget, index in tqdm(todo, desc="distilling", unit="student", disable=not progress):
            plan = plans[budget, index]
            student = env.student(plan)
            refit.prepare(student, plan)
            views.recipe = replace(views.recipe, lr=lr)
            distil(student, views, seed, loss)
            logits = predict(student, env.data, env.data.validation)
            right = accuracy(logits, env.data.validation.labels)
            results.append(Row(loss, lr, budget, index, right, divergence(logits, target)))
    return results.rows


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line a loss at its best rate: mean accuracy and KL, and the mean difference to Hinton on the same plans."""
    by: dict[tuple[str, float], dict] = {}
    for row in rows:
        by.setdefault((row.loss, row.lr), {})[row.budget, row.index] = row
    best = {}
    for (loss, lr), found in by.items():
        mean = float(np.mean([r.accuracy for r in found.values()]))
        if loss not in best or mean > best[loss][0]:
            best[loss] = (mean, lr, found)
    lines = ["| loss | rate | students | accuracy | against hinton | KL |", "|---|---|---|---|---|---|"]
    for loss, (mean, lr, found) in sorted(best.items(), key=lambda item: -item[1][0]):
        other = best.get("hinton", (0, 0, found))[2]
        gaps = np.array([100 * (found[k].accuracy - other[k].accuracy) for k in found if k in other])
        spread = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        kl = np.mean([r.kl for r in found.values()])
        lines.append(f"| {loss} | {lr:g} | {len(found)} | {mean:.2%} | {gaps.mean():+.2f} ± {spread:.2f} | {kl:.3f} |")
    return "\n".join(lines)
