"""What each decision about a teacher costs alone, for `inspect --sensitivities`: as text, and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compress_env.allocation.sensitivities import SHARES, Sensitivities
from compress_env.files import atomic
from compress_env.objective import Objective
from compress_env.report.formats import fit_name

HEAD = "KL to the teacher, in nats, of the refitted student with one block removed, or one group at a share of its channels"
LONGEST = 40
ROW, NAMES, CELL = 0.24, 3.2, 0.8
"""Inches of a row, of the names, and of a column of the picture."""
COLUMNS = ("removed", *(f"{share:.0%}" for share in SHARES))


def table(objective: Objective) -> list[tuple[str, list[float | None]]]:
    """A row a target, in the order of decisions: its name and for each of COLUMNS the KL in nats, None where it has none."""
    found: Sensitivities = objective.sensitivities
    rows: list[tuple[str, list[float | None]]] = []
    for decision in objective.problem.decisions:
        if not decision.shrinks:
            rows.append((decision.target, [found.blocks[decision.target], *([None] * len(SHARES))]))
            continue
        own = objective.problem.graph.groups[decision.target]
        measured = dict(found.groups.get(decision.target, ()))
        widths = [own.allowed(int(share * own.size + 1e-6)) for share in SHARES]
        rows.append((decision.target, [None, *(measured.get(width) for width in widths)]))
    return rows


def text(objective: Objective) -> str:
    """The table, with what it took to measure it."""
    found, rows = objective.sensitivities, table(objective)
    width = max(len(fit_name(name, LONGEST)) for name, _ in rows)
    lines = [f"{HEAD}:", "", f"{'':{width}} " + " ".join(f"{c:>8}" for c in COLUMNS)]
    for name, cells in rows:
        lines.append(f"{fit_name(name, LONGEST):{width}} " + " ".join(f"{'' if c is None else f'{c:.4f}':>8}" for c in cells))
    return "\n".join([*lines, "", f"{found.evaluations} students judged for it, in {found.seconds:.0f} seconds when it was measured"])


def save_picture(objective: Objective, path: str | Path) -> Path:
    """Draw the table, the darker the dearer.

    Args:
        objective: Of the teacher.
        path: A .png, .svg or .pdf file.

    Returns:
        The path.
    """
    rows = table(objective)
    values = np.array([[np.nan if c is None else c for c in cells] for _, cells in rows], float)
    size = (NAMES + CELL * len(COLUMNS), 1.1 + ROW * len(rows))
    figure = Figure(figsize=size, dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((NAMES / size[0], 0.15 / size[1], CELL * len(COLUMNS) / size[0], ROW * len(rows) / size[1]))
    logs = np.log10(np.maximum(values, 1e-5))
    axes.imshow(logs, aspect="auto", cmap="YlOrRd", vmin=np.nanmin(logs), vmax=np.nanmax(logs))
    middle = (np.nanmin(logs) + 2 * np.nanmax(logs)) / 3
    for y, x in zip(*np.nonzero(~np.isnan(values))):
        color = "white" if logs[y, x] > middle else "black"
        axes.text(x, y, f"{values[y, x]:.3g}", ha="center", va="center", fontsize=7.5, color=color)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, fontsize=8)
    axes.set_yticks(range(len(rows)), [fit_name(name, LONGEST) for name, _ in rows], fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)
    title = f"{objective.problem.teacher.name}: what each decision costs alone"
    figure.text(0.1 / size[0], 1 - 0.25 / size[1], title, fontsize=10, weight="bold")
    figure.text(0.1 / size[0], 1 - 0.5 / size[1], HEAD, fontsize=8)
    path = Path(path)
    with atomic(path) as part:
        figure.savefig(part, format=path.suffix[1:])
    return path
