"""Repair: a finished student whose measured latency misses its limit is changed until it does not.

Computed resources are predicted exactly. Latency is predicted, measured on the student, and the prediction corrected by what was
measured; then widths are searched again on a path from the smallest over the policy's to the teacher's. Where even the smallest are
too slow, since every operation takes its time however narrow it is, one more block goes.
"""

from __future__ import annotations

import numpy as np

from compress_env.resources.base import Candidate, Measurement, Room
from compress_env.surgery.graph import LayerGraph

ROUNDS = 12
"""Students that are built at most."""
LEAST, SLACK, MOST = 0.035, 0.025, 0.015
"""A student is changed unless its latency is 1.5 to 3.5 points of the teacher's below the limit; 2.5 is aimed at. Two measurements
of a student on a busy machine differ by 1 to 2 points; below, it would waste accuracy. Fewer points where limits are low."""
GOLDEN = 0.6180339887498949
PATH = np.linspace(0, 2, 201)

Path = list[tuple[float, np.ndarray]]
"""Positions from 0 to 2 and the widths there."""
End = tuple[float, float | None, np.ndarray]
"""A position on the path, the latency measured there if it was, and the widths."""


class Repair:
    """The students tried so far, and the latency that is looked for: from `least` to `most`, best `aim`."""

    def __init__(self, latency: Measurement, name: str, room: Room):
        """Begins with no student.

        Args:
            latency: Predicts and measures.
            name: Its name among the limits and usages.
            room: What may be changed.
        """
        self.latency, self.name, self.room, self.graph = latency, name, room, room.graph
        self.least = self.aim = self.most = 0.0
        self.tried: dict[str, Candidate] = {}
        self.seen: list[tuple[frozenset[str], float, float]] = []  # removed blocks, and latency as predicted and as measured

    def search(self, removed: frozenset[str], widths: np.ndarray) -> Candidate | None:
        """The best student within all limits, or None.

        It may be larger than the one with these choices where the policy had spent the budget by a prediction that was too high, but
        never slower than the policy had chosen.
        """
        limit = self.room.limits[self.name]
        point = min(self.latency.teacher, 2 * limit)
        predicted = self._predict(removed, widths)
        chosen = max(predicted, self._measure(removed, widths)[self.name])
        self.most = min(limit - MOST * point, chosen)
        self.aim = min(limit - SLACK * point, chosen - (SLACK - MOST) * point)
        self.least = self.aim - (LEAST - SLACK) * point
        more: frozenset[str] | None = removed
        while more is not None and len(self.tried) < ROUNDS and not self._widths(more, widths):
            more = self._without_one_more(more, widths)
        fitting = [found for found in self.tried.values() if found.meets(self.room.limits)]
        key = lambda found: (found.usage[self.name] <= self.most, found.usage[self.name])  # noqa: E731
        return max(fitting, key=key, default=None)

    def _widths(self, removed: frozenset[str], widths: np.ndarray) -> bool:
        """Search widths without these blocks. Whether there are any that meet the limits, so that no more blocks have to go."""
        path = _path(self.graph, self.room.shrinkable, widths, np.minimum(self.room.smallest, widths), self.graph.full)
        now, position = widths, 1.0
        below: End = (0.0, None, now)
        above: End = (2.0, None, now)
        while True:
            usage = self._measure(removed, now)
            measured = usage[self.name]
            if self.least <= measured <= self.most and all(usage[n] <= v for n, v in self.room.limits.items()):
                return True
            if measured > self.aim:
                above = min(above, (position, measured, now), key=lambda end: end[0])
            else:
                below = max(below, (position, measured, now), key=lambda end: end[0])
            between = self._open(removed, path, below[0], above[0])
            if not between and below[1] is not None and above[1] is not None:
                # one width more is a jump over what was aimed at: it stays, and the others grow instead
                ends = np.where(below[2] == above[2], self.graph.full, below[2])
                path = _path(self.graph, self.room.shrinkable, below[2], below[2], ends)
                below, above = (1.0, below[1], below[2]), (2.0, None, ends)
                between = self._open(removed, path, 1.0, 2.0)
            if not between or len(self.tried) >= ROUNDS:
                return below[1] is not None
            if below[1] is None or above[1] is None:
                predicted = np.array([self._predict(removed, w) for _, w in between])
                nearest = int(np.argmin(np.abs(predicted - self.aim)))
                if predicted.min() > self.most and sum(r == removed for r, _, _ in self.seen) > 1:
                    return False  # even the smallest are too slow
            else:  # along the path, what was measured on both sides says more than any prediction
                share = np.clip((self.aim - below[1]) / max(above[1] - below[1], 1e-12), 0.2, 0.8)
                place = below[0] + share * (above[0] - below[0])
                nearest = int(np.argmin([abs(t - place) for t, _ in between]))
            position, now = between[nearest]

    def _without_one_more(self, removed: frozenset[str], widths: np.ndarray) -> frozenset[str] | None:
        """The blocks and one more: of those with which the smallest widths are fast enough, the one that saves least; else most."""
        network, smallest = self.graph.view(removed), np.minimum(self.room.smallest, widths)
        times: dict[frozenset[str], float] = {}
        for name in self.room.removable - removed:
            more = removed | {name}
            if network.has(self.graph.blocks[name].node) and self.room.others_fit(self.name, more, smallest):
                times[more] = self._predict(more, smallest)
        enough = {more: time for more, time in times.items() if time <= self.aim}
        if enough:
            return max(enough, key=lambda more: enough[more])
        return min(times, key=lambda more: times[more], default=None)

    def _measure(self, removed: frozenset[str], widths: np.ndarray) -> dict[str, float]:
        """Usage counted on the student. One that is near the limit is measured twice, since chance may have put it there."""
        key = self.graph.canonical(removed, widths).key
        if key not in self.tried:
            found = self.room.build(removed, widths)
            if found.usage[self.name] <= self.room.limits[self.name]:
                again = {self.name: self.latency.measure(found.student, found.plan, 2)}
                found = found._replace(usage=found.usage | again)
            self.tried[key] = found
        usage = self.tried[key].usage
        self.seen.append((removed, self._raw(removed, widths), usage[self.name]))
        return usage

    def _raw(self, removed: frozenset[str], widths: np.ndarray) -> float:
        return float(self.latency.predict(self.graph.view(removed), widths))

    def _predict(self, removed: frozenset[str], widths: np.ndarray) -> float:
        """Latency, corrected on the line through the last two students with these blocks, else by the ratio of the last student."""
        raw = self._raw(removed, widths)
        same = {x: y for r, x, y in self.seen if r == removed}
        if len(same) > 1:
            (x0, y0), (x1, y1) = list(same.items())[-2:]
            return max(0.0, y1 + max(0.0, (y1 - y0) / (x1 - x0)) * (raw - x1))
        return raw * (self.seen[-1][2] / self.seen[-1][1] if self.seen else 1.0)

    def _open(self, removed: frozenset[str], path: Path, low: float, high: float) -> Path:
        """What of the path lies between two positions, was not tried, and meets the other limits."""
        return [
            (t, w)
            for t, w in path
            if low <= t <= high
            and self.graph.canonical(removed, w).key not in self.tried
            and self.room.others_fit(self.name, removed, w)
        ]


def _path(
    graph: LayerGraph, shrinkable: np.ndarray, widths: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> Path:
    """Widths from the smallest (0) over the policy's (1) to the largest (2), in small steps.

    Groups of one size take their steps one after another, spread by the golden ratio, so that latency rises little by little.
    """
    steps = np.array([g.step for g in graph.groups.values()])
    offset = np.arange(1, len(widths) + 1) * GOLDEN % 1
    found: dict[tuple[int, ...], tuple[float, np.ndarray]] = {}
    for t in PATH:
        low, high = (lowest, widths) if t <= 1 else (widths, highest)
        exact = low + (t if t <= 1 else t - 1) * (high - low)
        stepped = graph.allowed(np.floor(exact / steps + offset) * steps)
        now = widths if t == 1 else np.where(shrinkable, np.clip(stepped, low, high), widths)
        found.setdefault(tuple(now.tolist()), (float(t), now))
    return list(found.values())
