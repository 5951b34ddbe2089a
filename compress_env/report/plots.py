"""The figures of the report, each an SVG element to put inside HTML (no XML header, no name spaces, own ids)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress_env.report.colours import BLUE, GREEN, GREY, GRID, INK, ORANGE, PALE_RED, RED
from compress_env.report.formats import fit_name
from compress_env.search.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.0  # inches; narrow, so that the text is still legible when a phone scales the figure down
WINDOW = 20  # trials in the running mean
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 10, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": GREY, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9.5, "hatch.linewidth": 0.6,
}  # fmt: skip


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the `(cost, metric)` points that no other point beats, by rising cost; of equal points the first."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if all(map(math.isfinite, points[i])) and (not front or points[i][1] > points[front[-1]][1]):
            front.append(i)
    return front


def layers(rows: Sequence[Mapping]) -> str:
    """A bar a layer: channels on the left, share of the teacher's MACs on the right; outline before, filled after."""
    rows = [row for row in rows if row["kind"] != "norm"]
    total = sum(row["macs_before"] for row in rows) or 1
    panels = (
        ("channels", [r["before"] for r in rows], [r["after"] for r in rows], "{:.0f}"),
        ("MACs, % of the teacher", [100 * r["macs_before"] / total for r in rows],
         [100 * r["macs_after"] / total for r in rows], "{:.1f}"),
    )  # fmt: skip
    height = 0.19 * len(rows) + 0.6
    with matplotlib.rc_context(_style("layers") | {"font.size": 9, "axes.grid": False, "axes.spines.left": False}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, (label, before, after, form) in zip(both, panels):
            end = max([*before, *after], default=1) or 1
            for y, row in enumerate(rows):
                _layer(axes, y, row["status"], before[y], after[y], form, 0.03 * end)
            axes.set(xlim=(0, 1.42 * end), ylim=(len(rows) - 0.4, -0.6))  # room for the numbers beside the bars
            axes.set_title(label, fontsize=9.5, loc="left")
            axes.set_yticks(range(len(rows)), [fit_name(row["name"], 22) for row in rows])
            axes.tick_params(left=False, bottom=False, labelbottom=False)
            axes.spines["bottom"].set_visible(False)
        for label, row in zip(both[0].get_yticklabels(), rows):
            label.set_color(RED if row["status"] == "removed" else INK)
        both[1].tick_params(labelleft=False)
        return _svg(figure, "layers", "Channels and multiply-accumulate operations of each layer before and after")


def reward_curve(trials: Sequence[Trial]) -> str:
    """Reward of each trial (hollow dots: over the budget), the best so far, and the mean of the last 20."""
    xs, ys = [t.index for t in trials], [t.reward for t in trials]
    fits = [t.feasible for t in trials]
    best, high = [], -math.inf
    for y, fit in zip(ys, fits):
        high = max(high, y) if fit or not any(fits) else high
        best.append(high if math.isfinite(high) else math.nan)
    mean = [sum(part) / len(part) for part in (ys[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(ys)))]
    # A penalty far below the others would press them into a line, so what is over the budget may be drawn at the edge.
    scale = [*(y for y, fit in zip(ys, fits) if fit), *mean] if any(fits) else ys
    floor = min(scale) - 0.06 * (max(scale) - min(scale)) if scale else 0.0
    outside = "over budget" if min(ys, default=floor) >= floor else "over budget (clipped)"
    with matplotlib.rc_context(_style("reward")):
        figure, axes = _axes("trial", "reward")
        _dots(axes, xs, [max(y, floor) for y in ys], fits, "trial", outside)
        axes.plot(xs, mean, color=ORANGE, linewidth=1.4, label=f"mean of {WINDOW}")
        axes.step(xs, best, where="post", color=BLUE, linewidth=1.6, label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure)
        return _svg(figure, "reward", "Reward of each trial, best so far and running mean")


def plane(
    trials: Sequence[Trial], resource: str, label: str, best: Trial, distilled: tuple[float, float] | None = None
) -> str:
    """Each trial by its share of the teacher's usage of a resource and its validation metric in the quick evaluation.

    Args:
        trials: All trials; those that failed are left out.
        resource: The resource's name.
        label: Its label.
        best: The trial to mark, one of `trials`.
        distilled: Its share of the usage and its metric after fine-tuning, if it has been fine-tuned.
    """
    name, teacher = next(iter(best.evaluation.metrics)), best.evaluation.teacher_metric
    shown = [t for t in trials if not t.evaluation.failed and t.evaluation.teacher_usage.get(resource)]
    scale, unit = _scale([teacher, *(t.evaluation.metric for t in shown), *(distilled or ())[1:]])
    points = [(_share(t, t.evaluation.usage[resource], resource), scale * t.evaluation.metric) for t in shown]
    front = [points[i] for i in pareto(points)]
    # Equal limits differ where the teacher was measured anew.
    limits = sorted({round(_share(t, t.limits[resource], resource), 3) for t in shown if resource in t.limits})
    with matplotlib.rc_context(_style(f"plane-{resource}")):
        figure, axes = _axes(f"{label}, % of the teacher", f"validation {name}{unit}")
        fits = [t.feasible for t in shown]
        _dots(axes, [x for x, _ in points], [y for _, y in points], fits, "trial", "over budget")
        if front:
            axes.step(*zip(*front), where="post", color=BLUE, linewidth=1.4, marker="o", markersize=6, markerfacecolor="none",
                      label="Pareto front")  # fmt: skip
        for i, limit in enumerate(sorted({*limits[:1], *limits[-1:]})):  # a range of budgets has two
            axes.axvline(limit, color=ORANGE, linewidth=1.4, linestyle="--", label="" if i else "budget")
        if best in shown:
            axes.plot(*points[shown.index(best)], "*", color=RED, markersize=12, markeredgecolor="white", label="best found", zorder=5)
        if distilled:
            axes.plot(100 * distilled[0], scale * distilled[1], "P", color=RED, markersize=9, markeredgecolor="white",
                      label="fine-tuned", zorder=6)  # fmt: skip
        axes.axhline(scale * teacher, color=INK, linewidth=1.2, linestyle=":", label="teacher")
        _end_at_all(axes, unit)
        _legend(figure)
        return _svg(figure, f"plane-{resource}", f"Validation {name} of each trial against its use of {resource}")


def finetuning(finetune: Mapping[str, Any], name: str, teacher: float) -> str:
    """Validation metric after each epoch, the one that was kept and the last marked, and the teacher's as a line.

    Args:
        finetune: As in `result.json`, with "history", dicts of "epoch" and "validation", and "best_epoch".
        name: Of the metric.
        teacher: The teacher's, in the quick evaluation.
    """
    history = finetune["history"]
    values = [e["validation"] for e in history]
    scale, unit = _scale([teacher, *values])
    xs, ys = [e["epoch"] for e in history], [scale * v for v in values]
    with matplotlib.rc_context(_style("finetuning")):
        figure, axes = _axes("epoch", f"validation {name}{unit}")
        axes.plot(xs, ys, color=BLUE, linewidth=1.4, marker="o", markersize=2.5, label="student")
        axes.axhline(scale * teacher, color=INK, linewidth=1.2, linestyle="--", label="teacher")
        if ys:
            top = xs.index(finetune["best_epoch"])
            axes.plot(xs[top], ys[top], "*", color=RED, markersize=12, markeredgecolor="white", zorder=5,
                      label=f"kept: {ys[top]:.2f} (epoch {xs[top]})")  # fmt: skip
            axes.plot(xs[-1], ys[-1], "s", color=ORANGE, markersize=6, zorder=4,
                      label=f"last: {ys[-1]:.2f} (epoch {xs[-1]})")  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _end_at_all(axes, unit)
        _legend(figure)
        return _svg(figure, "finetuning", f"Validation {name} after each epoch of fine-tuning")


@dataclass(frozen=True)
class Panel:
    """One of the panels of `curves`.

    Attributes:
        label: Of its vertical axis.
        teacher: The teacher's number.
        series: By name, points from left to right.
    """

    label: str
    teacher: float
    series: Mapping[str, Sequence[tuple[float, float]]]


def curves(label: str, panels: Sequence[Panel]) -> str:
    """Panels one above the other, with lines that are solid for the first name and dashed for others; the teacher is dotted.

    Args:
        label: Of the horizontal axis, which they share.
        panels: From top to bottom.
    """
    with matplotlib.rc_context(_style("curve")):
        figure = Figure(figsize=(WIDTH, 2.2 * len(panels) + 0.6), layout="constrained")
        columns = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(columns, panels):
            for i, (name, points) in enumerate(panel.series.items()):
                color, line = ((BLUE, "-"), (ORANGE, "--"))[min(i, 1)]
                axes.plot(*zip(*points), color=color, linestyle=line, linewidth=1.4, marker="o", markersize=4, label=name)
            axes.axhline(panel.teacher, color=INK, linewidth=1.2, linestyle=":", label="teacher")
            axes.set_ylabel(panel.label)
        columns[-1].set_xlabel(label)
        figure.legend(*columns[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.4)
        return _svg(figure, "curve", f"{', '.join(panel.label for panel in panels)} against {label}")


def as_file(svg: str) -> str:
    """An element of this module as the content of an SVG file of its own."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _layer(axes: Axes, y: int, status: str, before: float, after: float, form: str, gap: float) -> None:
    if status == "removed":
        axes.barh(y, before, 0.66, color=PALE_RED, edgecolor=RED, linewidth=0.8, hatch="xxxx")
        axes.text(before + gap, y, "removed", va="center", fontsize=8, color=RED)
        return
    axes.barh(y, after, 0.66, color=BLUE)
    axes.barh(y, before, 0.66, fill=False, edgecolor=INK, linewidth=0.7)
    old, new = form.format(before), form.format(after)
    axes.text(max(before, after) + gap, y, old if old == new else f"{old} → {new}", va="center", fontsize=8)


def _dots(axes: Axes, xs: Sequence[float], ys: Sequence[float], fits: list[bool], inside: str, outside: str) -> None:
    """Dots in two groups, so that the legend names what is over the budget only if something is."""
    solid: dict[str, Any] = {"color": GREEN}
    hollow: dict[str, Any] = {"color": "none", "markeredgecolor": GREY}
    for fit, label, look in ((True, inside, solid), (False, outside, hollow)):
        own = [i for i, f in enumerate(fits) if f == fit]
        if own:
            x, y = [xs[i] for i in own], [ys[i] for i in own]
            axes.plot(x, y, "o", markersize=3.6, alpha=0.7, label=label, **look)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _legend(figure: Figure) -> None:
    """Above the axes, where it hides nothing."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.4)


def _share(trial: Trial, amount: float, resource: str) -> float:
    """An amount of a resource in % of the teacher's usage."""
    return 100 * amount / trial.evaluation.teacher_usage[resource]


def _scale(values: Sequence[float]) -> tuple[float, str]:
    """Metrics that lie in [0, 1] are shown in percent: the factor, and the unit to put behind the name."""
    return (100.0, ", %") if all(0 <= v <= 1 for v in values) else (1.0, "")


def _end_at_all(axes: Axes, unit: str) -> None:
    """A vertical axis in percent ends a little above 100."""
    if unit:
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))


def _style(name: str) -> dict:
    return _STYLE | {"svg.hashsalt": name}


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element, always the same; its ids start with `name`, so that several fit on one page."""
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # XML header and DOCTYPE have no place inside HTML
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    (width,) = map(float, re.findall(r'viewBox="0 0 ([\d.]+)', svg)[:1])
    head, rest = svg.split(">", 1)
    # HTML knows the name spaces, and CSS gives the size.
    head = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", head)
    prefix = re.sub(r"[^\w-]", "-", name)
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', rest).replace("url(#", f"url(#{prefix}-")
    return f'{head} role="img" aria-label="{_escape(label)}" style="max-width: {1.5 * width:.0f}px">{rest}'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
