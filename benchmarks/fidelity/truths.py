"""Random plans and what each one comes to when it is distilled properly: the truths that quick scores are held against."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from compress_env.cache import fingerprint
from compress_env.contexts import one_thread
from compress_env.data.dataset import Data, Split
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import fit, predict
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.files import JsonLines
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings
from compress_env.surgery.layout import channels_last
from compress_env.surgery.plan import Plan
from compress_env.tasks import Task
from compress_env.walk.walk import Walk

LEAST = 0.95
"""Plans use at least this share of their budget, so that how it is spent is compared."""
COUNTS = {0.5: 40, 0.25: 40}
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Truth:
    """A plan distilled, measured on the whole validation split.

    Attributes:
        budget: Share of the MACs.
        index: Its number among the plans of the budget.
        plan: The plan, as JSON.
        metric: Main metric after distillation.
        kl: KL(teacher || student) in nats.
        agreement: Share of examples with the teacher's answer.
        metric_start: Main metric before, when it was only refitted.
        steps: Of the training.
        seconds: Of the training alone.
    """

    budget: float
    index: int
    plan: str
    metric: float
    kl: float
    agreement: float
    metric_start: float
    steps: int
    seconds: float


def draw(problem: Problem, budget: float, count: int, seed: int) -> list[Plan]:
    """Different random plans of 95 to 100 % of a budget, depth and width mixed; fewer plans are a prefix of more.

    Each plan has its own probability of removal, up to 0.7, and its own spread of sparsities, so that plans lie far apart.

    Args:
        problem: They are plans of its graph.
        budget: Share of the MACs.
        count: How many.
        seed: Of all randomness.

    Raises:
        UserError: If there are not so many.
    """
    rng = np.random.default_rng([seed, round(budget * 1e6)])
    model, graph = problem.cost_model, problem.graph
    limits = {"macs": budget * model.teacher["macs"]}
    plans: dict[str, Plan] = {}
    for _ in range(10_000 * count):
        removal, spread = rng.uniform(0, 0.7), rng.uniform(0.1, 1)
        walk = Walk(problem, limits)
        while not walk.done:
            walk.step(-1.0 if rng.random() < removal else 1.0, float(rng.uniform(-spread, spread)))
        used = model.predict("macs", graph.view(walk.removed), walk.widths)
        if used >= LEAST * limits["macs"]:
            plan = graph.canonical(walk.removed, walk.widths)
            plans.setdefault(plan.key, plan)
        if len(plans) == count:
            return list(plans.values())
    raise UserError(
        f"only {len(plans)} different plans of {LEAST:.0%} to 100% of {budget:.0%} of the MACs were found; ask for fewer"
    )


def better_half(problem: Problem, plans: Sequence[Plan], progress: bool = True) -> list[Plan]:
    """The half of the plans with the higher score, as a search sees them, in the order in which they came."""
    evaluator = Evaluator(problem, EvaluatorSettings())
    scores = [evaluator(plan).proxy_score for plan in tqdm(plans, desc="scoring", unit="plan", disable=not progress)]
    best = sorted(range(len(plans)), key=lambda i: -scores[i])[: len(plans) // 2]
    return [plans[i] for i in sorted(best)]


class Views:
    """Augmented copies of the training images with the teacher's outputs, made once: every student is trained on the same.

    Args:
        teacher: Gives the outputs.
        data: The training images.
        passes: How many copies.
        recipe: How students are trained.
        seed: Of the augmentation.

    Raises:
        UserError: If the copies would take too much memory.
    """

    def __init__(self, teacher: fx.GraphModule, data: Data, passes: int, recipe: Recipe, seed: int):
        size = passes * data.train.inputs.nbytes
        if size > MAX_BYTES:
            raise UserError(
                f"{passes} augmented copies of the training images take {size / 2**30:.1f} GiB; ask for fewer passes"
            )
        generator = torch.Generator().manual_seed(seed)
        parts = [data.augment(x, generator) for _ in range(passes) for x in data.train.inputs.split(1000)]
        repeated = data.train.labels.repeat(passes, *[1] * (data.train.labels.dim() - 1))
        self.data = replace(data, train=Split(torch.cat(parts), repeated), _cache={})
        with channels_last(teacher):
            self.outputs = predict(teacher, self.data, self.data.train, bfloat16=recipe.precision == "bfloat16")
        self.recipe = replace(recipe, epochs=1, augment=False)


def distil(
    student: nn.Module, views: Views, task: Task, seed: int, loss: str | None = None, temperature: float = 4.0
) -> None:
    """Train a student in place on all views, with one of the task's losses."""
    function, outputs = task.losses.get(loss or task.loss), views.outputs
    generator = torch.Generator().manual_seed(seed)
    fit(
        student, views.data, views.recipe,
        lambda z, labels, _, rows: function(z, outputs[rows].to(z.device), labels, temperature), generator,
    )  # fmt: skip


def settings_of(problem: Problem, passes: int, lr: float | None, seed: int, upper_half: bool = False) -> dict[str, Any]:
    """What has to be equal for truths to be comparable; the first line of their file."""
    data = problem.data
    recipe = finetuning_recipe(len(data.train), passes, problem.device)
    recipe = recipe if lr is None else replace(recipe, lr=lr)
    return {
        "teacher": problem.teacher.name, "training_images": len(data.train), "validation_images": len(data.validation),
        "labels": int(data.validation.labels[:64].sum()), "loss": problem.task.loss, "temperature": 4.0, "seed": seed,
        "passes": passes, "recipe": recipe.to_json(), "ranking": problem.ranking.name, "weights": fingerprint(problem.teacher.module),
        **({"upper_half": True} if upper_half else {}),
    }  # fmt: skip


def truths(
    problem: Problem, path: Path, counts: Mapping[float, int] | None = None, *, passes: int | None = None,
    lr: float | None = None, seed: int | None = None, upper_half: bool = False, progress: bool = True,
) -> tuple[dict[str, Any], list[Truth]]:  # fmt: skip
    """Distil random plans and append each to a file; those that are there are not made again.

    Arguments that are None are as in the file, if there is one: then without `counts`, nothing is distilled. Budgets take turns, so
    that a file that is not finished is balanced.

    Args:
        problem: The teacher and its data.
        path: The file.
        counts: Plans by share of the MACs.
        passes: Over the training images.
        lr: The peak rate.
        seed: Of plans and training.
        upper_half: Whether they are the better half, by score, of twice as many.
        progress: Whether to show how far it is.

    Returns:
        The settings and all truths.

    Raises:
        UserError: If the file was made with other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    results = JsonLines(path, Truth, header=True)
    found = results.settings
    if found and not found.keys() >= {"recipe", "passes", "seed"}:
        raise UserError(f"{path} holds no distilled plans; give a file that this command has written, or another name")
    if seed is None:
        seed = found.get("seed", 0)
    if lr is None and found:
        lr = found["recipe"]["lr"]
    upper_half = upper_half or found.get("upper_half", False)
    settings = settings_of(problem, passes or found.get("passes", 1), lr, seed, upper_half)
    results.begin(settings)
    counts = counts or ({} if found else COUNTS)
    plans = {b: draw(problem, b, n * (1 + upper_half), seed) for b, n in counts.items()}
    if upper_half:
        plans = {b: better_half(problem, found, progress) for b, found in plans.items()}
    return settings, distilled(problem, results, settings, {(b, i): plans[b][i] for b, i in _turns(counts)}, progress)


def distilled(
    problem: Problem, results: JsonLines[Truth], settings: dict[str, Any], plans: Mapping[tuple[float, int], Plan],
    progress: bool = True,
) -> list[Truth]:  # fmt: skip
    """Everything in a file of truths, after the plans that it lacks were distilled and appended, in their order.

    Args:
        problem: The plans' problem.
        results: The file.
        settings: What it begins with, as `settings_of` gives it.
        plans: By budget and number.
        progress: Whether to show how far it is.

    Raises:
        UserError: If the file was made with other settings.
    """
    rows, whole, data, seed = results.begin(settings), problem.whole, problem.data, settings["seed"]
    done = {(t.budget, t.index) for t in rows}
    todo = {key: plan for key, plan in plans.items() if key not in done}
    if todo:
        with one_thread(), channels_last(whole):
            views = Views(whole, data, settings["passes"], Recipe(**settings["recipe"]), seed)
            target, refit = predict(whole, data, data.validation), refitter(problem)
            for (budget, index), plan in tqdm(todo.items(), desc="distilling", unit="plan", disable=not progress):
                rows.append(_truth(refit, budget, index, plan, views, target, seed))
                results.append(rows[-1])
    return rows


def _truth(refit: Evaluator, budget: float, index: int, plan: Plan, views: Views, target: Tensor, seed: int) -> Truth:
    problem, task = refit.problem, refit.task
    student, data, labels = refit.prepared(plan), problem.data, problem.data.validation.labels
    start = task.metrics(predict(student, data, data.validation), labels)[task.metric]
    began = time.perf_counter()
    distil(student, views, task, seed)
    seconds = time.perf_counter() - began
    outputs = predict(student, data, data.validation)
    return Truth(
        budget, index, plan.to_json(), task.metrics(outputs, labels)[task.metric], task.divergence(outputs, target),
        task.agreement(outputs, target), start, len(views.data.train) // views.recipe.batch_size, seconds,
    )  # fmt: skip


def refitter(problem: Problem) -> Evaluator:
    """The evaluator whose `prepared` gives the students that distillation starts from: refitted, not trained."""
    return Evaluator(problem, EvaluatorSettings(calibration_images=512))


def _turns(counts: Mapping[float, int]) -> Iterator[tuple[float, int]]:
    for i in range(max(counts.values(), default=0)):
        yield from ((b, i) for b, n in counts.items() if i < n)


def parse_counts(values: Sequence[str]) -> dict[float, int]:
    """`("0.5:40", "0.25:40")` as a dict. Raises UserError for anything else."""
    counts: dict[float, int] = {}
    for value in values:
        share, _, number = value.partition(":")
        try:
            counts[float(share)] = int(number)
        except ValueError:
            raise UserError(f"{value!r} is not SHARE:PLANS, for example 0.5:40") from None
        if not (0 < float(share) <= 1 and int(number) > 0):
            raise UserError(f"{value!r}: the share of the MACs lies in (0, 1], and there is at least one plan")
    return counts
