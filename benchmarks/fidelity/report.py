"""How well scores predict truths: rank correlations with intervals, regret, a Markdown table and a scatter plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.fidelity.scores import DEFAULT, PlanScore
from benchmarks.fidelity.truths import Truth
from compress_env.errors import UserError
from compress_env.evaluation import CAPACITY, proxy_score
from compress_env.files import atomic, write_text

RESAMPLES = 2000
EXPONENTS = (0.0, CAPACITY, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Agreement:
    """Correlations of scores with truths in [-1, 1], each with a 95 % percentile bootstrap interval over plans.

    Attributes:
        plans: How many pairs there are.
        spearman: Correlation of ranks.
        kendall: Kendall's tau-b.
        pearson: Linear correlation.
        regret: The best truth minus that of the plan with the best score, in the truth's unit.
    """

    plans: int
    spearman: float
    spearman_interval: tuple[float, float]
    kendall: float
    kendall_interval: tuple[float, float]
    pearson: float
    pearson_interval: tuple[float, float]
    regret: float


def agreement(scores: Sequence[float], truths: Sequence[float], seed: int = 0) -> Agreement:
    """Compare scores with truths, both higher is better. Constant scores predict nothing: their correlations are 0."""
    x, y = np.asarray(scores, float), np.asarray(truths, float)
    if len(x) != len(y) or len(x) < 3:
        raise UserError(f"{len(x)} scores and {len(y)} truths: at least three pairs are needed; distil more plans")
    picks = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    found: dict[str, Any] = {}
    for name, statistic in (("spearman", spearman), ("kendall", kendall), ("pearson", pearson)):
        found[name] = float(statistic(x[None], y[None])[0])
        low, high = np.percentile(statistic(x[picks], y[picks]), [2.5, 97.5])
        found[f"{name}_interval"] = (float(low), float(high))
    return Agreement(len(x), regret=float(y.max() - y[int(np.argmax(x))]), **found)


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear correlation of each row of `x` with that of `y` `(rows, n)`, in [-1, 1]; 0 if one side is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return _cosine(x, y)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation of each row, in [-1, 1], ties sharing their mean rank; 0 if one side is constant."""
    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row, in [-1, 1]: the cosine of the orders of all pairs; 0 if one side is constant."""
    first, second = np.triu_indices(x.shape[-1], 1)
    return np.concatenate(
        [_cosine(np.sign(a[:, first] - a[:, second]), np.sign(b[:, first] - b[:, second]))
         for a, b in zip(np.array_split(x, 20), np.array_split(y, 20))]
    )  # fmt: skip


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(scale > 0, (x * y).sum(-1) / np.where(scale > 0, scale, 1), 0.0)


def table(rows: Mapping[tuple[str, float], tuple[Agreement, float, float, float]]) -> str:
    """Markdown, a line an evaluator and budget.

    Args:
        rows: Agreement, the candidates' mean metric, seconds a candidate, and their share of the distillation's.
    """
    lines = [
        "| evaluator | MACs | plans | Spearman | Kendall | Pearson | regret | metric | seconds | of distillation |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, budget), (a, metric, seconds, share) in rows.items():
        cells = [
            f"{value:.2f} ({low:.2f} to {high:.2f})"
            for value, (low, high) in (
                (a.spearman, a.spearman_interval), (a.kendall, a.kendall_interval), (a.pearson, a.pearson_interval),
            )
        ]  # fmt: skip
        lines.append(
            f"| {name} | {budget:.0%} | {a.plans} | {' | '.join(cells)} | {100 * a.regret:.2f} | {metric:.1%} | "
            f"{seconds:.3f} | 1/{1 / share:.0f} |"
        )
    return "\n".join(lines)


def exponents(truths: Sequence[Truth], scores: Sequence[PlanScore], size: Mapping[tuple[float, int], float]) -> str:
    """Markdown: Spearman of the score with other exponents of the size, against the metric after distillation and against the KL."""
    distilled = {(t.budget, t.index): t for t in truths}
    budgets = list(dict.fromkeys(t.budget for t in truths))
    lines = [
        "| exponent | " + " | ".join(f"{what}, {b:.0%}" for b in budgets for what in ("metric", "KL")) + " |",
        "|---" * (1 + 2 * len(budgets)) + "|",
    ]
    for exponent in EXPONENTS:
        cells = []
        for budget in budgets:
            found = [s for s in scores if s.evaluator == DEFAULT and s.budget == budget]
            score = np.array([[proxy_score(s.kl, size[budget, s.index], exponent) for s in found]])
            own = [distilled[budget, s.index] for s in found]
            cells += [f"{spearman(score, np.array([y]))[0]:.2f}" for y in ([t.metric for t in own], [-t.kl for t in own])]
        lines.append(f"| {exponent:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scatter(
    points: Mapping[tuple[str, float], tuple[Sequence[float], Sequence[float]]], path: Path, title: str
) -> Path:
    """A PNG with a panel for each evaluator (columns) and budget (rows); points are `(scores, truths)` of plans."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _ in points))
    budgets = list(dict.fromkeys(budget for _, budget in points))
    figure = Figure(figsize=(1 + 2.1 * len(names), 0.8 + 2.1 * len(budgets)), layout="constrained")
    axes = figure.subplots(len(budgets), len(names), squeeze=False, sharey="row")
    for (name, budget), (scores, truths) in points.items():
        axis = axes[budgets.index(budget)][names.index(name)]
        rho = spearman(np.array([scores]), np.array([truths]))[0]
        axis.scatter(scores, truths, s=10, alpha=0.7, linewidths=0, color="#1f5fa8")
        axis.text(0.05, 0.95, f"Spearman {rho:.2f}", transform=axis.transAxes, va="top", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.margins(0.08, 0.12)
        if axis is axes[0][names.index(name)]:
            axis.set_title(name, fontsize=8)
        if axis is axes[budgets.index(budget)][0]:
            axis.set_ylabel(f"distilled, {budget:.0%} of the MACs", fontsize=8)
    figure.supxlabel("score of the candidate", fontsize=8)
    figure.suptitle(title, fontsize=9)
    with atomic(path) as part:
        figure.savefig(part, dpi=100)
    return path


def write(
    out: Path, teacher: str, truths: Sequence[Truth], scores: Sequence[PlanScore], sizes: Mapping[str, float],
    seconds: Mapping[float, float], free: Mapping[str, tuple[float, float]],
) -> str:  # fmt: skip
    """Write `fidelity.md` and `fidelity.png`.

    Args:
        out: The folder.
        teacher: Its name.
        truths: Of `benchmarks.fidelity.truths`.
        scores: Of `benchmarks.fidelity.scores`, and so are `sizes` and `free`.
        sizes: Share of the parameters by plan.
        seconds: Of distilling one plan, for each budget.
        free: Metrics of students without training.

    Returns:
        The Markdown.
    """
    truth = {(t.budget, t.index): t.metric for t in truths}
    size = {(t.budget, t.index): sizes[t.plan] for t in truths}
    series: dict[tuple[str, float], list[PlanScore]] = {}
    for budget in dict.fromkeys(t.budget for t in truths):
        for s in scores:
            if s.budget == budget:
                series.setdefault((s.evaluator, budget), []).append(s)
    rows, points = {}, {}
    for (name, budget), found in series.items():
        y = [truth[s.budget, s.index] for s in found]
        cost, mean = float(np.mean([s.seconds for s in found])), float(np.mean([s.metric for s in found]))
        score = [proxy_score(s.kl, size[s.budget, s.index]) for s in found]
        measures = {"": score, ", by KL": [-s.kl for s in found], ", by metric": [s.metric for s in found]}
        for label, x in measures.items():
            rows[name + label, budget] = (agreement(x, y), mean, cost, cost / seconds[budget])
        points[name, budget] = (score, y)
    spread = ", ".join(
        f"{min(v):.3f} to {max(v):.3f} at {b:.0%} of the MACs ({s:.1f} s a plan)"
        for b, s in seconds.items()
        for v in [[t.metric for t in truths if t.budget == b]]
    )
    text = f"""{teacher}: metric after distillation on validation images, {spread}.
Intervals: 95 %, bootstrap over plans. Regret: points of the metric below the best plan. Metric: mean of the candidates before
distillation. Seconds: of processor time, one thread.

{table(rows)}

Spearman of the default's score with other exponents of the size, against the metric after distillation, and against the distilled
student's KL to the teacher, which tells apart what differs by less than an image:

{exponents(truths, scores, size)}

No training, best of 100 random plans at 50 % of the MACs (validation / test):
refitted {_pair(free["refit"])}, plain magnitude {_pair(free["magnitude"])}, teacher {_pair(free["teacher"])}.
AMC, as published, at 50 %: Plain-20 86.4 % / 86.0 % of 90.5 %, ResNet-56 90.2 % / 90.1 % of 92.8 %; its layers pick their inputs from
tensors that stay as wide as they were.
"""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "fidelity.md", text)
    scatter(points, out / "fidelity.png", f"{teacher}: score before, metric after distillation, a point a plan")
    return text


def _pair(metrics: tuple[float, float]) -> str:
    return " / ".join(f"{100 * m:.1f} %" for m in metrics)
