"""Sending a finished student back: where its measured latency misses the budget, it is changed until it does not.

Everything but latency is predicted exactly. Latency is predicted, measured on the student, and the prediction corrected by what was
measured; then widths are searched again on a path from the smallest over the policy's to the teacher's. Where even the smallest are
too slow, since every operation takes its time however narrow it is, one more block goes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from compress_env.resources.latency import stopwatch as latency
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan

ROUNDS = 12
LEAST, SLACK, MOST = 0.035, 0.025, 0.015
"""A student comes back unless its latency is 1.5 to 3.5 points of the teacher's below the limit; 2.5 is aimed at. Two measurements
of a student on a busy machine differ by 1 to 2 points; below, it would waste accuracy. Fewer points where limits are low."""
GOLDEN = 0.6180339887498949
PATH = np.linspace(0, 2, 201)

Finished = tuple[Plan, fx.GraphModule, dict[str, float]]
Path = list[tuple[float, np.ndarray]]
"""Positions from 0 to 2 and the widths there."""


def finished(
    problem, removed: frozenset[str], widths: np.ndarray, limits: Mapping[str, float] | None, rest
) -> Finished:
    """The plan, its student and the usage counted on it, within every limit; `limits` is None where they are soft.

    A student may grow where the policy had spent the budget by a prediction that was too high, never beyond the latency that it had
    chosen. If no round meets the limits, the way out `rest` does.
    """
    found = _build(problem, removed, widths)
    if limits is None or (latency.NAME not in limits and _within(found[2], limits)):
        return found
    if latency.NAME in limits:
        best = _SendBack(problem, limits, rest).search(removed, widths)
        if best:
            return best
    plan = problem.graph.canonical(rest.removed, rest.widths)
    return plan, build_student(problem.teacher, problem.graph, plan), dict(rest.usage)


class _SendBack:
    """The students tried so far, and the latency that is looked for: from `least` to `most`, best `aim`."""

    def __init__(self, problem, limits: Mapping[str, float], rest):
        self.problem, self.graph, self.cost_model = problem, problem.graph, problem.cost_model
        self.limits, self.rest = limits, rest
        self.tried: dict[str, Finished] = {}
        self.seen: list[
            tuple[frozenset[str], float, float]
        ] = []  # blocks removed, and latency as predicted and as measured

    def search(self, removed: frozenset[str], widths: np.ndarray) -> Finished | None:
        """The best student within all limits, or None."""
        limit = self.limits[latency.NAME]
        point = min(self.cost_model.teacher[latency.NAME], 2 * limit)
        predicted = self._predict(removed, widths)
        chosen = max(predicted, self._measure(removed, widths)[latency.NAME])
        self.most = min(limit - MOST * point, chosen)
        self.aim = min(limit - SLACK * point, chosen - (SLACK - MOST) * point)
        self.least = self.aim - (LEAST - SLACK) * point
        more: frozenset[str] | None = removed
        while more is not None and len(self.tried) < ROUNDS and not self._widths(more, widths):
            more = self._without_one_more(more, widths)
        fitting = [found for found in self.tried.values() if _within(found[2], self.limits)]
        key = lambda found: (found[2][latency.NAME] <= self.most, found[2][latency.NAME])  # noqa: E731
        return max(fitting, key=key, default=None)

    def _widths(self, removed: frozenset[str], widths: np.ndarray) -> bool:
        """Search widths without these blocks. Whether there are any that meet the limits, so that no more blocks have to go."""
        path = _path(self.problem, widths, np.minimum(self.rest.widths, widths), self.graph.full)
        now, position = widths, 1.0
        below, above = (
            (0.0, None, now),
            (2.0, None, now),
        )  # positions on the path, what was measured there, and the widths
        while True:
            usage = self._measure(removed, now)
            measured = usage[latency.NAME]
            if self.least <= measured <= self.most and _within(usage, self.limits):
                return True
            if measured > self.aim:
                above = min(above, (position, measured, now), key=lambda end: end[0])
            else:
                below = max(below, (position, measured, now), key=lambda end: end[0])
            between = self._open(removed, path, below[0], above[0])
            if not between and below[1] is not None and above[1] is not None:
                # one width more is a jump over what was aimed at: it stays, and the others grow instead
                ends = np.where(below[2] == above[2], self.graph.full, below[2])
                path = _path(self.problem, below[2], below[2], ends)
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
        network, smallest = self.graph.view(removed), np.minimum(self.rest.widths, widths)
        times = {}
        for name in self.problem.removals - removed:
            more = removed | {name}
            if network.has(self.graph.blocks[name].node) and self._others_fit(more, smallest):
                times[more] = self._predict(more, smallest)
        enough = {more: time for more, time in times.items() if time <= self.aim}
        return max(enough, key=enough.get) if enough else min(times, key=times.get, default=None)

    def _measure(self, removed: frozenset[str], widths: np.ndarray) -> dict[str, float]:
        """Usage counted on the student. One that is near what is looked for is measured twice, since chance may have put it there."""
        key = self.graph.canonical(removed, widths).key
        if key not in self.tried:
            plan, student, usage = _build(self.problem, removed, widths)
            if usage[latency.NAME] <= self.limits[latency.NAME]:
                usage = self.cost_model.settle(student, plan)
            self.tried[key] = plan, student, usage
        usage = self.tried[key][2]
        self.seen.append((removed, self._raw(removed, widths), usage[latency.NAME]))
        return usage

    def _raw(self, removed: frozenset[str], widths: np.ndarray) -> float:
        return self.cost_model.predict(latency.NAME, self.graph.view(removed), widths)

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
            and self._others_fit(removed, w)
        ]

    def _others_fit(self, removed: frozenset[str], widths: np.ndarray) -> bool:
        return self.cost_model.fits(
            self.graph.view(removed), widths, {n: v for n, v in self.limits.items() if n != latency.NAME}
        )


def _path(problem, widths: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> Path:
    """Widths from the smallest (0) over the policy's (1) to the largest (2), in small steps.

    Groups of one size take their steps one after another, spread by the golden ratio, so that latency rises little by little.
    """
    graph = problem.graph
    steps = np.array([g.step for g in graph.groups.values()])
    undecided = {d.target for d in problem.decisions if d.kind == "shrink"}
    free = np.array([name in undecided for name in graph.groups], bool)
    offset = np.arange(1, len(widths) + 1) * GOLDEN % 1
    found: dict[tuple, tuple[float, np.ndarray]] = {}
    for t in PATH:
        low, high = (lowest, widths) if t <= 1 else (widths, highest)
        exact = low + (t if t <= 1 else t - 1) * (high - low)
        stepped = graph.allowed(np.floor(exact / steps + offset) * steps)
        now = widths if t == 1 else np.where(free, np.clip(stepped, low, high), widths)
        found.setdefault(tuple(now.tolist()), (float(t), now))
    return list(found.values())


def _build(problem, removed: frozenset[str], widths: np.ndarray) -> Finished:
    plan = problem.graph.canonical(removed, widths)
    student = build_student(problem.teacher, problem.graph, plan)
    return plan, student, problem.cost_model.count(student, plan)


def _within(usage: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(usage[name] <= limit for name, limit in limits.items())
