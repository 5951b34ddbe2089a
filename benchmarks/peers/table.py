"""A Markdown table of students of ours and of torch-pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.compare import PREFIX, PeerResult
from compress_env.bench.statistics import mean_interval, percent


def table(settings: Mapping[str, Any], rows: Sequence[PeerResult]) -> str:
    """Markdown: a line a student, the best on test images first, and the difference of our best one and the best peer."""
    by: dict[str, list[PeerResult]] = {}
    for row in rows:
        by.setdefault(row.student, []).append(row)
    good = {name: own for name, own in by.items() if not any(r.failed for r in own)}
    lines = [
        f"{settings['teacher']} on {settings['data']}, at most {settings['share']:.1%} of the MACs; every student fine-tuned for "
        f"{settings['epochs']} epochs with the same recipe (peak rate {settings['recipe']['lr']:g}), loss and seeds. "
        "Mean ± 95 % interval over seeds (Student's t).",
        "",
        "| student | seeds | validation, cut | test, cut | validation, fine-tuned | test, fine-tuned | MACs | params |",
        "|---|---|---|---|---|---|---|---|",
        f"| teacher | | | | {settings['teacher_validation']:.2%} | {settings['teacher_test']:.2%} | 100% | 100% |",
    ]
    for name, own in sorted(good.items(), key=lambda item: -np.mean([r.test for r in item[1]])):
        first = own[0]
        cells = [name, str(len(own)), f"{first.validation_start:.2%}", f"{first.test_start:.2%}",
                 percent([r.validation for r in own]), percent([r.test for r in own]),
                 f"{first.macs:.1%}", f"{first.params:.1%}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for name, own in by.items():
        if name not in good:
            lines.append(f"| {name} | | failed: {_cell(next(r.failed for r in own if r.failed))} | | | | | |")
    lines += [
        "",
        "Cut: right after the surgery; ours are refitted then, without training, those of torch-pruning as it leaves them.",
    ]
    return "\n".join([*lines, *_lead(good)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _lead(good: Mapping[str, Sequence[PeerResult]]) -> list[str]:
    """Our student that is best on validation images less the peer that is best on test images, a choice in the peer's favour:
    ties on few validation images would otherwise decide. On test images, seeds paired.
    """
    sides: dict[bool, dict[str, Sequence[PeerResult]]] = {True: {}, False: {}}
    for name, own in good.items():
        sides[name.startswith(PREFIX)][name] = own
    if not all(sides.values()):
        return []
    ours = max(sides[False], key=lambda name: np.mean([r.validation for r in good[name]]))
    peer = max(sides[True], key=lambda name: np.mean([r.test for r in good[name]]))
    a, b = ({r.seed: r.test for r in good[name]} for name in (ours, peer))
    gaps = [100 * (a[s] - b[s]) for s in sorted(set(a) & set(b))]
    if not gaps:
        return []
    middle, half = mean_interval(gaps)
    spread = "" if np.isnan(half) else f" ± {half:.2f}"
    return [
        "",
        f"{ours} (our best on validation images) less {peer} (the best peer on test images): {middle:+.2f}{spread} points on test "
        "images.",
    ]
