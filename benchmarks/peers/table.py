"""A Markdown table of students of ours and of torch-pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.compare import PeerResult
from benchmarks.peers.students import OURS, PEER, WIDTHS
from compress_env.bench.statistics import mean_interval, percent
from compress_env.spec import RUNTIMES
from compress_env.surgery.plan import Plan

ByLength = Mapping[int, Sequence[PeerResult]]
"""What became of a student, by the epochs of the training."""
TITLES = {PEER: "the best peer", WIDTHS: "the best of the peers' widths with our channels and refit"}


def by_student(rows: Sequence[PeerResult]) -> tuple[dict[str, dict[int, list[PeerResult]]], dict[str, str]]:
    """Rows by student and epochs, and for students of which one failed the reason."""
    failed = {r.student: r.failed for r in reversed(rows) if r.failed}
    found: dict[str, dict[int, list[PeerResult]]] = {}
    for row in rows:
        if row.student not in failed:
            found.setdefault(row.student, {}).setdefault(row.epochs, []).append(row)
    return found, failed


def table(settings: Mapping[str, Any], rows: Sequence[PeerResult]) -> str:
    """Markdown: a line a student, the best on test images after its longest training first, and how far our best one is ahead."""
    good, failed = by_student(rows)
    lengths = sorted({e for own in good.values() for e in own if e})
    timed = [name for name in RUNTIMES if any(name in r.latency for r in rows)]
    what = {"macs": "MACs", "latency": "time"}[settings["resource"]]
    where = f" ({settings['where']})" if settings["where"] else ""
    rates = " and ".join(dict.fromkeys(f"{r.lr:g}" for own in good.values() for e in lengths for r in own.get(e, [])))
    trained = f"fine-tuned with the same recipe (peak rate {rates}), loss and seeds" if lengths else "not fine-tuned"
    head = ["student", "blocks removed", "MACs", "params", *(f"latency, {RUNTIMES[name]}" for name in timed), "validation, cut",
            "test, cut", *(f"{split}, {_epochs(e)}" for e in lengths for split in ("validation", "test")), "seeds"]  # fmt: skip
    accuracies = (f"{settings[f'teacher_{split}']:.2%}" for split in ("validation", "test"))
    teacher = ["teacher", "", *["100%"] * (2 + len(timed)), *accuracies]
    lines = [
        f"{settings['teacher']} on {settings['data']}, at most {settings['share']:.1%} of the teacher's {what}{where}; every student "
        f"{trained}. Mean ± 95 % interval over seeds (Student's t).",
        "", _line(head), "|---" * len(head) + "|", _line([*teacher, *[""] * (len(head) - len(teacher))]),
    ]  # fmt: skip
    for name, own in sorted(good.items(), key=lambda item: _order(item[1])):
        first = next(iter(own.values()))[0]
        cells = [name, _removed(first), f"{first.macs:.1%}", f"{first.params:.1%}", *(_time(first, runtime) for runtime in timed),
                 f"{first.validation_start:.2%}", f"{first.test_start:.2%}"]  # fmt: skip
        for e in lengths:
            cells += [percent([r.validation for r in own[e]]), percent([r.test for r in own[e]])] if e in own else ["", ""]
        lines.append(_line([*cells, str(max(len(rs) for rs in own.values()))]))
    lines += [_line([name, f"failed: {why}", *[""] * (len(head) - 2)]) for name, why in failed.items()]
    lines += [
        "",
        "Cut: right after the surgery. Ours and those with a peer's widths are refitted then, without training; those of "
        "torch-pruning are as it leaves them.",
    ]
    for length in sorted({e for own in good.values() for e in own}):
        for side in (PEER, WIDTHS):
            lines += _lead(good, side, length)
    return "\n".join([*lines, *_needed(good)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def _removed(row: PeerResult) -> str:
    """How many blocks a student lacks; torch-pruning removes none."""
    return str(len(Plan.from_json(row.how).removed)) if row.side != PEER else "0"


def _time(row: PeerResult, runtime: str) -> str:
    return f"{row.milliseconds[runtime]:.2f} ms, {row.latency[runtime]:.0%}" if runtime in row.latency else ""


def _order(own: ByLength) -> tuple[int, float]:
    longest = max(own)
    return -longest, -_mean(own[longest], "test")


def _mean(rows: Sequence[PeerResult], name: str) -> float:
    return float(np.mean([getattr(r, name) for r in rows]))


def best(good: Mapping[str, ByLength], side: str, epochs: int) -> str | None:
    """The student of a side that is best on validation images after a training of so many epochs."""
    those = {name: own[epochs] for name, own in good.items() if epochs in own and own[epochs][0].side == side}
    return max(those, key=lambda name: _mean(those[name], "validation"), default=None)


def _lead(good: Mapping[str, ByLength], side: str, epochs: int) -> list[str]:
    """Our student less the other side's, each the best on validation images; on test images, seeds paired."""
    ours, other = best(good, OURS, epochs), best(good, side, epochs)
    if ours is None or other is None:
        return []
    a, b = ({r.seed: r.test for r in good[name][epochs]} for name in (ours, other))
    gaps = [100 * (a[s] - b[s]) for s in sorted(set(a) & set(b))]
    if not gaps:
        return []
    middle, half = mean_interval(gaps)
    spread = "" if np.isnan(half) else f" ± {half:.2f}"
    return [
        "",
        f"After {_epochs(epochs)}, best on validation images: {ours} less {other} ({TITLES[side]}): {middle:+.2f}{spread} points on "
        f"test images ({len(gaps)} seed{'s' * (len(gaps) > 1)}).",
    ]


def _needed(good: Mapping[str, ByLength]) -> list[str]:
    """In how many epochs our best student is as good as the best peer after the longest training."""
    longest = max((e for own in good.values() for e in own), default=0)
    ours, peer = best(good, OURS, longest), best(good, PEER, longest)
    if not longest or ours is None or peer is None:
        return []
    goal = _mean(good[peer][longest], "test")
    enough = [e for e in sorted(good[ours]) if _mean(good[ours][e], "test") >= goal]
    text = f"{ours} reaches what {peer} has after {_epochs(longest)} ({goal:.2%} test)"
    return ["", f"{text} in {_epochs(enough[0])}." if enough else f"{text} in none of its trainings."]
