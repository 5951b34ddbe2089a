"""The picture of an episode: the layers of a student beside the teacher's, and what they use, as text or as a picture.

Both functions are pure. `rows` has one dict a layer with weights, in order of computation: name, kind (conv, depthwise,
grouped, linear, norm, other), before and after (output channels; 0 after removal), status (kept, shrunk, wider, removed,
inserted, undecided), macs_before and macs_after. `spent` maps a budgeted resource to used, limit and teacher, in its unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress_env.report.colours import BLUE, GREEN, GREY, INK, PALE_GREY, RED
from compress_env.report.formats import fit_name, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = 24  # characters of the longest text bar
WIDTH, HEIGHT, DPI = 960, 720, 100  # of the picture, in pixels
ROWS_PER_COLUMN = 32  # more rows than this are drawn side by side, so that labels stay legible
_EIGHTHS = " ▏▎▍▌▋▊▉"


def ansi(rows: Sequence[Mapping], spent: Mapping[str, Mapping], title: str) -> str:
    """A text table: a line a layer with a bar (full: kept, shaded: the teacher's), and a line a budgeted resource."""
    most = max((max(row["before"], row["after"]) for row in rows), default=1) or 1
    names = [fit_name(row["name"], 32) for row in rows]
    longest = max(map(len, names), default=5)
    lines = [title, f"{'layer':<{longest}}  {'kind':<9}  {'channels':>11}  {'':<{CELLS}}  {'MACs':>6}"]
    for name, row in zip(names, rows):
        before, after, status = row["before"], row["after"], row["status"]
        cells = max(1, round(CELLS * max(before, after) / most))
        bar = {"removed": "╳" * cells, "undecided": "▒" * cells}.get(status) or _bar(after / max(1, before, after), cells)
        channels = f"{'?' if status == 'undecided' else after:>5} /{before:>4}"
        mark = f"  {status}" if status in ("removed", "undecided", "inserted", "wider") else ""
        macs = quantity(row["macs_after"])
        lines.append(f"{name:<{longest}}  {row['kind']:<9}  {channels:>11}  {bar:<{CELLS}}  {macs:>6}{mark}")
    wide = max(map(len, spent), default=0)
    for resource, use in spent.items():
        share, verdict = _share(use["used"], use["teacher"]), "within" if _within(use) else "OVER"
        lines.append(
            f"{resource:<{wide}}  {_bar(min(1.0, share), CELLS)}  {quantity(use['used'], use['unit'])}, "
            f"{100 * share:.1f} % of the teacher; {verdict} the limit of {quantity(use['limit'], use['unit'])}"
        )
    return "\n".join(lines)


def picture(rows: Sequence[Mapping], spent: Mapping[str, Mapping], title: str) -> np.ndarray:
    """The same drawn, without normalisation layers: uint8 `(720, 960, 3)`.

    A bar a layer (outline: the teacher's channels, filled: kept, crossed: removed, hatched: undecided), and below them
    a bar a budgeted resource with its limit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["kind"] != "norm"]
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    top, bottom = 58, 14 + 30 * len(spent)  # pixels
    figure.text(16 / WIDTH, 1 - 20 / HEIGHT, fit_name(title, 96), fontsize=12, va="center", color=INK, parse_math=False)
    _legend(figure)
    columns = max(1, math.ceil(len(rows) / ROWS_PER_COLUMN))
    height = math.ceil(len(rows) / columns)
    font = min(10.0, 0.5 * (HEIGHT - top - bottom) / max(1, height))  # points; a row has to be taller than its text
    most = max((max(row["before"], row["after"]) for row in rows), default=1) or 1
    for column in range(columns):
        own = rows[column * height : (column + 1) * height]
        names = [fit_name(row["name"], 24) for row in own]
        left = column * WIDTH / columns + 22 + 0.6 * font * DPI / 72 * max(map(len, names), default=0)
        right = (column + 1) * WIDTH / columns - 14 - 5.5 * font * DPI / 72  # room for "512/1024"
        axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, (right - left) / WIDTH, 1 - (top + bottom) / HEIGHT))
        axes.set(xlim=(0, most), ylim=(max(height, 10) - 0.4, -0.6))  # few rows stay slim and at the top
        axes.set_axis_off()
        _layers(axes, own, names, font, 6 * most / (right - left))
    _resources(figure, spent, bottom)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _layers(axes: Axes, rows: Sequence[Mapping], names: Sequence[str], font: float, gap: float) -> None:
    """A column of bars; `gap` is what lies between a bar and its texts, in channels."""
    for y, (name, row) in enumerate(zip(names, rows)):
        before, after, status = row["before"], row["after"], row["status"]
        ink = GREY if status == "removed" else INK
        text = {"removed": "removed", "undecided": f"?/{before}"}.get(status, f"{after}/{before}")
        axes.text(-gap, y, name, ha="right", va="center", fontsize=font, color=ink, parse_math=False)
        axes.text(max(before, after) + gap, y, text, va="center", fontsize=font, color=ink)
        if status == "undecided":
            axes.barh(y, before, 0.66, fill=False, hatch="//////", edgecolor=GREY, linewidth=0.8, clip_on=False)
            continue
        if status == "removed":
            axes.barh(y, before, 0.66, color=PALE_GREY)
            for low, high in ((0.33, -0.33), (-0.33, 0.33)):
                axes.plot((0, before), (y + low, y + high), color=RED, linewidth=0.9)
        else:
            axes.barh(y, after, 0.66, color=BLUE)
        axes.barh(y, before, 0.66, fill=False, edgecolor=ink, linewidth=0.8, clip_on=False)


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    kinds = {
        "channels kept": Patch(facecolor=BLUE, edgecolor=INK),
        "teacher's channels": Patch(facecolor="white", edgecolor=INK),
        "removed": Patch(facecolor=PALE_GREY, edgecolor=RED, hatch="xxx"),
        "undecided": Patch(facecolor="white", edgecolor=GREY, hatch="//////"),
    }
    figure.legend(
        kinds.values(), kinds, ncols=4, loc="center left", bbox_to_anchor=(8 / WIDTH, 1 - 42 / HEIGHT), fontsize=8.5,
        frameon=False, handlelength=1.6, columnspacing=1.6,
    )  # fmt: skip


def _resources(figure: Figure, spent: Mapping[str, Mapping], height: float) -> None:
    """A bar a resource in the lowest `height` pixels, on a scale that ends at the teacher's usage or beyond it."""
    if not spent:
        return
    shares = [(_share(use["used"], use["teacher"]), _share(use["limit"], use["teacher"])) for use in spent.values()]
    end = max(1.0, *(x for pair in shares for x in pair))
    axes = figure.add_axes((96 / WIDTH, 8 / HEIGHT, 400 / WIDTH, (height - 14) / HEIGHT))
    axes.set(xlim=(0, end), ylim=(len(spent) - 0.5, -0.5))
    axes.set_axis_off()
    for y, ((name, use), (share, limit)) in enumerate(zip(spent.items(), shares)):
        axes.text(-0.02 * end, y, name, ha="right", va="center", fontsize=10, color=INK, parse_math=False)
        axes.barh(y, share, 0.5, color=GREEN if _within(use) else RED)
        axes.barh(y, 1, 0.5, fill=False, edgecolor=INK, linewidth=0.8, clip_on=False)
        axes.plot((limit, limit), (y - 0.42, y + 0.42), color=INK, linewidth=2.2, clip_on=False)
        note = f"{quantity(use['used'], use['unit'])} = {100 * share:.1f} % of the teacher, limit {100 * limit:.1f} %"
        axes.text(1.02 * end, y, note, va="center", fontsize=10, color=INK if _within(use) else RED, parse_math=False)


def _bar(share: float, cells: int) -> str:
    """`cells` characters, filled from the left to an eighth of a character, the rest shaded."""
    eighths = max(0, min(8 * cells, round(8 * cells * share)))
    full, part = divmod(eighths, 8)
    bar = "█" * full + (_EIGHTHS[part] if part else "")
    return bar + "░" * (cells - len(bar))


def _share(value: float, teacher: float) -> float:
    return value / teacher if teacher else 0.0


def _within(use: Mapping) -> bool:
    return use["used"] <= use["limit"]
