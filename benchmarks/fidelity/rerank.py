"""`python -m benchmarks.fidelity.rerank`: whether distilling a search's best students a little, to choose among them, pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm.auto import tqdm

from benchmarks.fidelity.report import spearman
from benchmarks.fidelity.truths import Truth, distilled, settings_of
from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.files import JsonLines
from compress_env.problem import Problem
from compress_env.search.choice import FINALISTS
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery.plan import Plan

DRAWS = 2000
"""Bootstrap samples of the plans, in each of which every way to choose chooses anew."""


@dataclass(frozen=True)
class Judged:
    """What is known of a plan.

    Attributes:
        budget: Share of the MACs.
        score: As a search sees it, without training.
        short: Main metric after the short distillation.
        kl: KL(teacher || student) in nats after it.
        truth: Main metric after the long one.
    """

    budget: float
    score: float
    short: float
    kl: float
    truth: float


def again(problem: Problem, truths: Sequence[Truth], path: Path, passes: int, seed: int) -> list[Truth]:
    """The same plans, in their order, distilled for another time; those that are in the file are not distilled again.

    Args:
        problem: The plans' problem.
        truths: The plans.
        path: The file to which each is appended.
        passes: Over the training images.
        seed: Of the augmentation and the order of the images.

    Raises:
        UserError: If the file was made with other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plans = {(t.budget, t.index): Plan.from_json(t.plan) for t in truths}
    known = distilled(problem, JsonLines(path, Truth, header=True), settings_of(problem, passes, None, seed), plans)
    rows = {(t.budget, t.index): t for t in known}
    return [rows[key] for key in plans]


def judged(problem: Problem, truths: Sequence[Truth], short: Sequence[Truth]) -> list[Judged]:
    """Each plan with its score, made anew, and what came of it after the long training and, in the same order, the short one."""
    evaluator, found = Evaluator(problem, EvaluatorSettings()), []
    for t, own in tqdm(list(zip(truths, short)), desc="scoring", unit="plan"):
        found.append(Judged(t.budget, evaluator(Plan.from_json(t.plan)).proxy_score, own.metric, own.kl, t.metric))
    return found


def chosen(plans: Sequence[Judged], finalists: int) -> Mapping[str, float]:
    """The metric after the long training of the plan that each way chooses.

    Args:
        plans: Of one budget.
        finalists: How many with the best scores are distilled shortly.
    """
    best = sorted(plans, key=lambda p: -p.score)[:finalists]
    return {
        "the best score": best[0].truth,
        f"of the {finalists} with the best score, the most accurate after the short training": max(best, key=lambda p: p.short).truth,
        f"of the {finalists}, the one with the lowest KL after the short training": min(best, key=lambda p: p.kl).truth,
        f"any of the {finalists}, on average": float(np.mean([p.truth for p in best])),
        "of all, the most accurate after the short training": max(plans, key=lambda p: p.short).truth,
    }


def table(plans: Sequence[Judged], finalists: int) -> str:
    """Markdown: points below the best plan, for each way to choose, and the mean [95 %] over bootstrap samples of the plans."""
    budgets = list(dict.fromkeys(p.budget for p in plans))
    columns: dict[str, list[str]] = {}
    correlations = []
    for budget in budgets:
        own = [p for p in plans if p.budget == budget]
        if len(own) <= finalists:
            raise UserError(f"there are {len(own)} plans at {budget:.0%} of the MACs and {finalists} finalists; give more plans")
        truth, rng = np.array([[p.truth for p in own]]), np.random.default_rng(0)
        samples = [[own[i] for i in rng.integers(len(own), size=len(own))] for _ in range(DRAWS)]
        regrets: dict[str, list[float]] = {}
        for sample in samples:
            best = max(p.truth for p in sample)
            for way, value in chosen(sample, finalists).items():
                regrets.setdefault(way, []).append(100 * (best - value))
        for way, value in chosen(own, finalists).items():
            low, high = np.percentile(regrets[way], [2.5, 97.5])
            cell = f"{100 * (truth.max() - value):.2f} | {np.mean(regrets[way]):.2f} [{low:.2f}, {high:.2f}]"
            columns.setdefault(way, []).append(cell)
        rho = {n: float(spearman(np.array([v]), truth)[0]) for n, v in _known(own).items()}
        correlations.append(f"{budget:.0%} of the MACs, {len(own)} plans: " + ", ".join(f"{n} {v:.2f}" for n, v in rho.items()))
    head = " | ".join(f"{b:.0%}: points below the best | mean over samples [95 %]" for b in budgets)
    lines = [f"| chosen | {head} |", "|---" * (1 + 2 * len(budgets)) + "|"]
    lines += [f"| {way} | {' | '.join(cells)} |" for way, cells in columns.items()]
    return "\n".join([*lines, "", "Spearman with the metric after the long training; " + "; ".join(correlations)])


def _known(plans: Sequence[Judged]) -> dict[str, list[float]]:
    short, kl = [p.short for p in plans], [-p.kl for p in plans]
    return {"score": [p.score for p in plans], "metric after the short one": short, "its KL": kl}


@click.command(cls=Command)
@options.of(ProblemSpec, "teacher", "data")
@click.option("--truths", type=options.Place(path_type=Path, dir_okay=False, exists=True), required=True, metavar="FILE.jsonl",
              help="Plans distilled for long, as `python -m benchmarks.fidelity` writes them.")  # fmt: skip
@click.option("--passes", type=click.IntRange(1), default=1, show_default=True, help="Of the short distillation.")
@click.option("--finalists", type=click.IntRange(2), default=FINALISTS, show_default=True, help="How many it chooses from.")
@click.option("--longer", type=options.Place(path_type=Path, dir_okay=False), metavar="FILE.jsonl",
              help="What the passes of the short distillations bring if the plan with the best score has them instead: it is "
              "distilled for so much longer, unless the file has it.")  # fmt: skip
@click.option("--plans", type=click.IntRange(3), help="Only so many at each share of the MACs; all if absent.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the short distillation.")
@click.option("--short", type=options.Place(path_type=Path, dir_okay=False), required=True, metavar="FILE.jsonl",
              help="The plans distilled shortly; those that it lacks are distilled.")  # fmt: skip
def main(
    truths: Path, passes: int, finalists: int, plans: int | None, seed: int, short: Path, longer: Path | None, **problem: Any
) -> None:
    """Choose a plan by its score, and by a short distillation of the plans with the best scores; say how good either choice was.

    \b
    python -m benchmarks.fidelity.rerank --teacher resnet20-cifar10 --data imagefolder:DIR \\
        --truths benchmarks/fidelity/resnet20-cifar10-ten-epochs.jsonl --short runs/one-epoch.jsonl

    Interrupted, the same command goes on.
    """
    built = Problem.build(ProblemSpec(**problem), progress=True)
    file = JsonLines(truths, Truth, header=True)
    known = sorted(file.read(), key=lambda t: (t.index, -t.budget))
    by_budget = {budget: [t for t in known if t.budget == budget][:plans] for budget in dict.fromkeys(t.budget for t in known)}
    known = [t for own in by_budget.values() for t in own]
    found = judged(built, known, again(built, known, short, passes, seed))
    click.echo(table(found, finalists))
    if longer:
        best = [max(own, key=lambda t: found[known.index(t)].score) for own in by_budget.values()]
        long = file.settings["passes"]
        total = long + finalists * passes
        for t, more in zip(best, again(built, best, longer, total, file.settings["seed"])):
            click.echo(
                f"{t.budget:.0%} of the MACs, the best score: {t.metric:.2%} after {long} passes, {more.metric:.2%} after {total}, "
                f"as many as with the short ones of {finalists}"
            )


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.fidelity.rerank")
