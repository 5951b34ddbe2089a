"""Accuracy on test images against epochs and seconds of training, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.peers.compare import PeerResult
from benchmarks.peers.students import OURS, PEER, WIDTHS
from benchmarks.peers.table import by_student

DASHES = {OURS: "-", PEER: "--", WIDTHS: ":"}


def curves(settings: Mapping[str, Any], rows: Sequence[PeerResult]) -> str:
    """An SVG with a line a student through its accuracy after each length of training, means of seeds; "" where there is only one.

    Students that were trained for fewer lengths than others have no line, which would say nothing of what lies between.
    """
    found = by_student(rows)[0]
    most = max(map(len, found.values()), default=0)
    if most < 2:
        return ""
    good = {name: own for name, own in found.items() if len(own) == most}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "peers", "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        canvas, panels = FigureCanvasSVG(figure), figure.subplots(1, 2, sharey=True)
        for name, own in good.items():
            lengths = sorted(own)
            tests = [100 * np.mean([r.test for r in own[e]]) for e in lengths]
            seconds = [e * np.mean([r.seconds for r in own[e]]) for e in lengths]
            for axes, xs in zip(panels, (lengths, seconds)):
                axes.plot(xs, tests, DASHES[own[lengths[0]][0].side], marker="o", markersize=3, linewidth=1.3, label=name)
        for axes, label in zip(panels, ("epochs", "seconds of training")):
            axes.axhline(100 * settings["teacher_test"], color="black", linewidth=0.8)
            axes.set(xlabel=label)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        lowest = min(100 * r.test for own in good.values() for r in own[max(own)])
        panels[0].set(ylabel="test accuracy, %", ylim=(lowest - 12, 100 * settings["teacher_test"] + 1))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        file = io.StringIO()
        canvas.print_svg(file, metadata={"Date": None})
    return file.getvalue()
