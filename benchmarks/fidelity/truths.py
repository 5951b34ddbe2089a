"""Random plans and what each one comes to when it is distilled properly: the truths that quick scores are held against."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from compress_env.bench.results import Results, read
from compress_env.cache import fingerprint
from compress_env.contexts import one_thread
from compress_env.data.dataset import Data, Split
from compress_env.distill.evaluator import Evaluator, EvaluatorSettings, divergence
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import channels_last, fit, predict
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.surgery.plan import Plan
from compress_env.tasks.classification import accuracy
from compress_env.tasks.classification.losses import LOSSES
from compress_env.walk.walk import Walk

LEAST = 0.95
"""Plans use at least this share of their budget, so that what is compared is how it is spent."""
SELECTION = "explaining"
"""How students choose their channels: what other ones come to says nothing about these."""
COUNTS = {0.5: 40, 0.25: 40}
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Truth:
    """A plan distilled. Accuracy before (refitted only) and after, in [0, 1], KL to the teacher at temperature 1 in nats, all on
    the whole validation split; seconds of the training alone."""

    budget: float
    index: int
    plan: str
    accuracy: float
    kl: float
    agreement: float
    accuracy_start: float
    steps: int
    seconds: float


def draw(env: LayerRemovalEnv, budget: float, count: int, seed: int) -> list[Plan]:
    """`count` different random plans of 95 to 100 % of `budget` (share of the MACs), depth and width mixed; fewer plans are a prefix.

    Each plan has its own probability of removal, up to 0.7, and its own spread of sparsities, so that plans lie far apart.
    """
    rng = np.random.default_rng([seed, round(budget * 1e6)])
    limits = {"macs": budget * env.cost_model.teacher["macs"]}
    plans: dict[str, Plan] = {}
    for _ in range(10_000 * count):
        removal, spread = rng.uniform(0, 0.7), rng.uniform(0.1, 1)
        episode = Walk(env.problem, limits, hard=True)
        while not episode.done:
            episode.step(-1.0 if rng.random() < removal else 1.0, float(rng.uniform(-spread, spread)))
        used = env.cost_model.predict("macs", env.graph.view(episode.removed), episode.widths)
        if used >= LEAST * limits["macs"]:
            plan = env.graph.canonical(episode.removed, episode.widths)
            plans.setdefault(plan.key, plan)
        if len(plans) == count:
            return list(plans.values())
    raise UserError(
        f"only {len(plans)} different plans of {LEAST:.0%} to 100% of {budget:.0%} of the MACs were found; ask for fewer"
    )


class Views:
    """`passes` augmented copies of the training images with the teacher's logits, made once: every student is trained on the same."""

    def __init__(self, teacher, data: Data, passes: int, recipe: Recipe, seed: int):
        size = passes * data.train.inputs.nbytes
        if size > MAX_BYTES:
            raise UserError(
                f"{passes} augmented copies of the training images take {size / 2**30:.1f} GiB; ask for fewer passes"
            )
        generator = torch.Generator().manual_seed(seed)
        parts = [data.augment(x, generator) for _ in range(passes) for x in data.train.inputs.split(1000)]
        self.data = replace(data, train=Split(torch.cat(parts), data.train.labels.repeat(passes)), _cache={})
        with channels_last(teacher):
            self.logits = predict(teacher, self.data, self.data.train, bfloat16=recipe.precision == "bfloat16")
        self.recipe = replace(recipe, epochs=1, augment=False)


def distil(student, views: Views, seed: int, loss: str = "hinton", temperature: float = 4.0) -> None:
    """Train `student` in place on all views."""
    function, logits = LOSSES.get(loss), views.logits
    generator = torch.Generator().manual_seed(seed)
    fit(
        student, views.data, views.recipe,
        lambda z, labels, _, rows: function(z, logits[rows].to(z.device), labels, temperature), generator,
    )  # fmt: skip


def settings_of(env: LayerRemovalEnv, passes: int, lr: float | None, seed: int) -> dict:
    """What has to be equal for truths to be comparable; the first line of their file."""
    recipe = finetuning_recipe(len(env.data.train), passes, env.device)
    recipe = recipe if lr is None else replace(recipe, lr=lr)
    return {
        "teacher": env.teacher.name, "training_images": len(env.data.train), "validation_images": len(env.data.validation),
        "labels": int(env.data.validation.labels[:64].sum()), "loss": "hinton", "temperature": 4.0, "seed": seed,
        "passes": passes, "recipe": asdict(recipe), "channels": SELECTION, "weights": fingerprint(env.teacher.module),
    }  # fmt: skip


def truths(
    env: LayerRemovalEnv, path: Path, counts: Mapping[float, int] | None = None, *, passes: int | None = None,
    lr: float | None = None, seed: int | None = None, progress: bool = True,
) -> tuple[dict, list[Truth]]:  # fmt: skip
    """Distil `counts[budget]` random plans a budget and append each to `path`; those that are there are not made again.

    What is None is as in the file, if there is one: then without `counts`, nothing is distilled. Budgets take turns, so that a file
    that is not finished is balanced. Returns the settings and truths. Raises UserError if the file was made with other settings.
    """
    found, _ = read(path, Truth)
    if seed is None:
        seed = found.get("seed", 0)
    if lr is None and found:
        lr = found["recipe"]["lr"]
    settings = settings_of(env, passes or found.get("passes", 1), lr, seed)
    results = Results(path, Truth, settings)
    counts = counts or ({} if found else COUNTS)
    plans = {b: draw(env, b, n, seed) for b, n in counts.items()}
    done = {(t.budget, t.index) for t in results.rows}
    todo = [(b, i) for b, i in _turns(counts) if (b, i) not in done]
    if todo:
        with one_thread(), channels_last(env.whole):
            views = Views(env.whole, env.data, settings["passes"], Recipe(**settings["recipe"]), seed)
            target, refit = predict(env.whole, env.data, env.data.validation), refitter(env)
            for budget, index in tqdm(todo, desc="distilling", unit="plan", disable=not progress):
                results.append(_truth(env, budget, index, plans[budget][index], refit, views, target, seed))
    return settings, results.rows


def _truth(
    env, budget: float, index: int, plan: Plan, refit: Evaluator, views: Views, target: Tensor, seed: int
) -> Truth:
    student = env.student(plan)
    refit.prepare(student, plan)
    labels = env.data.validation.labels
    start = accuracy(predict(student, env.data, env.data.validation), labels)
    began = time.perf_counter()
    distil(student, views, seed)
    seconds = time.perf_counter() - began
    logits = predict(student, env.data, env.data.validation)
    return Truth(
        budget, index, plan.to_json(), accuracy(logits, labels), divergence(logits, target), accuracy(logits, target.argmax(1)),
        start, len(views.data.train) // views.recipe.batch_size, seconds,
    )  # fmt: skip


def refitter(env: LayerRemovalEnv) -> Evaluator:
    """The evaluator whose `prepare` gives the students that distillation starts from: refitted, not trained."""
    return Evaluator(env.whole, env.graph, env.data, EvaluatorSettings(calibration_images=512))


def _turns(counts: Mapping[float, int]) -> Iterator[tuple[float, int]]:
    for i in range(max(counts.values(), default=0)):
        yield from ((b, i) for b, n in counts.items() if i < n)


def parse_counts(values: Sequence[str]) -> dict[float, int]:
    """`("0.5:40", "0.25:40")` as a dict. Raises UserError for anything else."""
    counts = {}
    for value in values:
        share, _, number = value.partition(":")
        try:
            counts[float(share)] = int(number)
        except ValueError:
            raise UserError(f"{value!r} is not SHARE:PLANS, for example 0.5:40") from None
        if not (0 < float(share) <= 1 and int(number) > 0):
            raise UserError(f"{value!r}: the share of the MACs lies in (0, 1], and there is at least one plan")
    return counts
