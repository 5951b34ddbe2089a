"""The picture of an inspection: what goes with each block and each group, a panel a resource."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from compress_env.errors import UserError
from compress_env.files import atomic
from compress_env.report.colours import BLUE, GREY, INK, ORANGE
from compress_env.report.formats import fit_name, quantity, unit_beside
from compress_env.report.inspect import Inspection, TreeRow
from compress_env.search.result import ResourceName

SUFFIXES = (".png", ".svg", ".pdf")
ROW, HEAD, FOOT = 0.19, 0.95, 0.15  # heights in inches
NAMES, PANEL = 2.9, 2.45  # widths in inches
DPI = 110
LONGEST = 36  # characters of a name


def check_place(path: str | Path) -> Path:
    """The path of a picture. Raises UserError if it ends in something else than .png, .svg or .pdf, or has no folder."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {path}: the name has to end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"cannot draw {path}: there is no folder {path.parent}; make it first")
    return path


def save_picture(found: Inspection, path: str | Path) -> Path:
    """Draw the tree of blocks and groups with a bar a resource each, with the teacher's usage and the least that is reachable.

    Raises UserError as `check_place`, or if the file cannot be written; it is written whole or not at all.
    """
    path = check_place(path)
    with atomic(path) as part, matplotlib.rc_context({"text.parse_math": False}):  # names may hold dollar signs
        draw(found).savefig(part, dpi=DPI)
    return path


def draw(found: Inspection) -> Figure:
    """The figure: as high as there are rows, as wide as there are resources; all panels have one scale."""
    rows, resources = found.rows, list(found.usage)
    width, height = NAMES + PANEL * len(resources) + 0.2, HEAD + ROW * len(rows) + FOOT
    figure = Figure(figsize=(width, height), facecolor="white")
    title = f"{found.teacher}, inputs of {'x'.join(map(str, found.input_shape))}"
    figure.text(0.12 / width, 1 - 0.2 / height, fit_name(title, 90), fontsize=12, va="center", color=INK)
    kinds = {
        "saved by removing a block": Patch(color=BLUE),
        "saved by shrinking a group to its fewest channels": Patch(color=ORANGE),
    }
    figure.legend(
        kinds.values(), kinds, ncols=2, loc="center left", bbox_to_anchor=(0.05 / width, 1 - 0.45 / height),
        fontsize=9, frameon=False, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
    end = max([share for row in rows for share in row.shares.values()], default=1.0)
    end = end if end > 0 else 1.0
    for i, resource in enumerate(resources):
        left = NAMES + PANEL * i
        axes = figure.add_axes((left / width, FOOT / height, (PANEL - 0.15) / width, ROW * len(rows) / height))
        axes.set(xlim=(0, 1.25 * end), ylim=(len(rows) - 0.5, -0.5))  # room for the numbers beside the bars
        axes.set_axis_off()
        _panel_head(figure, found, resource, left / width, 1 - (HEAD - 0.14) / height)
        for y, row in enumerate(rows):
            if i == 0:
                _name(axes, y, row, end)
            if resource in row.shares:
                share = row.shares[resource]
                axes.plot((0, 0), (y - 0.5, y + 0.5), color=GREY, linewidth=0.8)
                axes.barh(y, max(0.0, share), 0.7, color=ORANGE if row.kind == "group" else BLUE)
                axes.text(max(0.0, share) + 0.015 * end, y, f"{share:.1%}", va="center", fontsize=8, color=INK)
            elif i == 0:
                reason = textwrap.shorten(found.stays[row.name], 100, placeholder=" …")
                axes.text(0.03 * end, y, reason, va="center", fontsize=8, color=GREY)
    return figure


def _panel_head(figure: Figure, found: Inspection, resource: str, x: float, y: float) -> None:
    """The teacher's usage, and the least that is reachable."""
    whole, least, name = found.usage[resource], found.smallest[resource], ResourceName.of(resource)
    unit = unit_beside(name.label, name.unit)
    used = f"{quantity(whole, unit)}, at least {quantity(least, unit)}"
    figure.text(x, y, f"{name.label}: {used}", fontsize=9, va="center", color=INK)


def _name(axes: Axes, y: int, row: TreeRow, end: float) -> None:
    """The name to the left of the first panel, moved in by its depth, and its channels right before the bars."""
    start = -1.25 * end / (PANEL - 0.15)  # of an inch, in the panel's unit
    name = fit_name(row.name, LONGEST - 2 * row.depth)
    color = GREY if row.kind == "stays" else INK
    weight = "normal" if row.kind in ("group", "stays") else "bold"
    x = start * (NAMES - 0.12 - 0.14 * row.depth)
    axes.text(x, y, name, va="center", fontsize=8.5, color=color, weight=weight)
    what = row.kind if row.channels is None else "{} to {}".format(*row.channels)
    axes.text(0.06 * start, y, what, ha="right", va="center", fontsize=8, color=GREY)
