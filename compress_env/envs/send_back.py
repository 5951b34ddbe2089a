"""Sending a finished student back: where its measured latency misses the budget, its widths are changed until it does not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from compress_env.resources import latency
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import StudentPlan

ROUNDS = 6
LEAST, SLACK, MOST = 0.04, 0.02, 0.01
"""A student comes back unless its latency is between 4 points and 1 point of the teacher's below the limit; 2 is aimed at. Two
measurements of a student on a busy machine differ by 1 to 2 points; below, it would waste accuracy. Less where limits are low."""
GOLDEN = 0.6180339887498949
PATH = np.linspace(0, 2, 201)

Finished = tuple[StudentPlan, fx.GraphModule, dict[str, float]]


def finished(problem, removed: frozenset[str], widths: np.ndarray, limits: Mapping[str, float] | None, rest) -> Finished:
    """The plan, its student and the usage counted on it, within every limit; `limits` is None where they are soft.

    Everything but latency is predicted exactly. Latency is predicted, measured on the student, and the prediction corrected by
    what was measured; then widths are searched again on a path from the smallest over the policy's to the teacher's. A student
    may grow where the policy had spent the budget by a prediction that was too high, never beyond the latency that it had
    chosen. If no round meets the limits, the way out `rest` does.
    """
    plan, student, usage = _build(problem, removed, widths)
    if limits is None or (latency.NAME not in limits and _within(usage, limits)):
        return plan, student, usage
    if latency.NAME not in limits:
        return _way_out(problem, rest)
    limit, network = limits[latency.NAME], problem.graph.reduce(removed)
    point = min(problem.meter.teacher[latency.NAME], 2 * limit)
    most, aim = limit - MOST * point, limit - SLACK * point
    chosen = max(problem.meter.predict(latency.NAME, network, widths), usage[latency.NAME])
    aim = min(aim, chosen)
    least = aim - (LEAST - SLACK) * point
    path = _path(problem, removed, widths, rest)
    best, seen = None, set()
    now, low, high = widths, 0.0, 2.0  # positions on the path known to fit and not to
    position = 1.0
    for _ in range(ROUNDS):
        measured = usage[latency.NAME]
        seen.add(plan.key)
        fits = _within(usage, limits)
        if fits and (best is None or measured > best[2][latency.NAME]):
            best = plan, student, usage
        if fits and least <= measured <= most:
            break
        if measured > aim:
            high = min(high, position)
        else:
            low = max(low, position)
        correction = measured / problem.meter.predict(latency.NAME, network, now)
        candidates = [(t, w) for t, w in path if low <= t <= high and _predicted(problem, network, w, limits, aim, correction)]
        choice = max(candidates, key=lambda c: c[0], default=None) or min(path, key=lambda c: abs(c[0] - (low + high) / 2))
        if problem.graph.canonical(removed, choice[1]).key in seen:  # the correction does not get anywhere: halve
            between = [c for c in path if low < c[0] < high and problem.graph.canonical(removed, c[1]).key not in seen]
            if not between:
                break
            choice = min(between, key=lambda c: abs(c[0] - (low + high) / 2))
        position, now = choice
        plan, student, usage = _build(problem, removed, now)
    else:
        if _within(usage, limits) and (best is None or usage[latency.NAME] > best[2][latency.NAME]):
            best = plan, student, usage
    return best or _way_out(problem, rest)


def _path(problem, removed, widths, rest) -> list[tuple[float, np.ndarray]]:
    """Widths from the smallest (0) over the policy's (1) to the teacher's (2), in small steps.

    Groups of one size take their steps one after another, spread by the golden ratio, so that latency rises little by little.
    """
    graph = problem.graph
    lowest, steps = np.minimum(rest.widths, widths), np.array([g.step for g in graph.groups.values()])
    undecided = {d.target for d in problem.decisions if d.kind == "shrink"}
    free = np.array([name in undecided for name in graph.groups], bool)
    offset = np.arange(1, len(widths) + 1) * GOLDEN % 1
    found: dict[tuple, tuple[float, np.ndarray]] = {}
    for t in PATH:
        low, high = (lowest, widths) if t <= 1 else (widths, graph.full)
        exact = low + (t if t <= 1 else t - 1) * (high - low)
        stepped = graph.allowed(np.floor(exact / steps + offset) * steps)
        now = widths if t == 1 else np.where(free, np.clip(stepped, low, high), widths)
        found.setdefault(tuple(now.tolist()), (float(t), now))
    return list(found.values())


def _predicted(problem, network, widths, limits, aim: float, correction: float) -> bool:
    meter = problem.meter
    others = (n for n in limits if n != latency.NAME)
    return meter.predict(latency.NAME, network, widths) * correction <= aim and all(
        meter.predict(n, network, widths) <= limits[n] for n in others
    )


def _build(problem, removed: frozenset[str], widths: np.ndarray) -> Finished:
    plan = problem.graph.canonical(removed, widths)
    student = build_student(problem.teacher, problem.graph, plan)
    return plan, student, problem.meter.count(student, plan)


def _way_out(problem, rest) -> Finished:
    plan = problem.graph.canonical(rest.removed, rest.widths)
    return plan, build_student(problem.teacher, problem.graph, plan), dict(rest.usage)


def _within(usage: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(usage[name] <= limit for name, limit in limits.items())
