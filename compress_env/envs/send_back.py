"""Sending a finished student back: where its measured latency misses the budget, its widths are changed until it does not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from compress_env.resources import latency
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import StudentPlan

ROUNDS = 6
LEAST, SLACK, MOST = 0.04, 0.025, 0.015
"""A student comes back unless its latency is 1.5 to 4 points of the teacher's below the limit; 2.5 is aimed at. Two measurements
of a student on a busy machine differ by 1 to 2 points; below, it would waste accuracy. Fewer points where limits are low."""
GOLDEN = 0.6180339887498949
PATH = np.linspace(0, 2, 201)

Finished = tuple[StudentPlan, fx.GraphModule, dict[str, float]]


def finished(
    problem, removed: frozenset[str], widths: np.ndarray, limits: Mapping[str, float] | None, rest
) -> Finished:
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
    most, aim = min(most, chosen), min(aim, chosen - (SLACK - MOST) * point)
    least = aim - (LEAST - SLACK) * point
    path = _path(problem, removed, widths, rest)
    tried: dict[str, Finished] = {}
    now, position, low, high = (
        widths,
        1.0,
        0.0,
        2.0,
    )  # the last two: positions on the path that are below the aim, and above
    for _ in range(ROUNDS):
        tried[plan.key] = plan, student, usage
        measured = usage[latency.NAME]
        if least <= measured <= most and _within(usage, limits):
            break
        if measured > aim:
            high = min(high, position)
        else:
            low = max(low, position)
        correction = measured / problem.meter.predict(latency.NAME, network, now)
        between = [(t, w) for t, w in path if low <= t <= high and problem.graph.canonical(removed, w).key not in tried]
        between = [(t, w) for t, w in between if _others_fit(problem, network, w, limits)]
        if not between:
            break
        predicted = [problem.meter.predict(latency.NAME, network, w) * correction for _, w in between]
        position, now = between[int(np.argmin(np.abs(np.array(predicted) - aim)))]
        plan, student, usage = _build(problem, removed, now)
    tried[plan.key] = plan, student, usage
    fitting = [found for found in tried.values() if _within(found[2], limits)]
    if not fitting:
        return _way_out(problem, rest)
    return max(fitting, key=lambda found: (found[2][latency.NAME] <= most, found[2][latency.NAME]))


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


def _others_fit(problem, network, widths, limits) -> bool:
    return all(problem.meter.predict(n, network, widths) <= limits[n] for n in limits if n != latency.NAME)


def _build(problem, removed: frozenset[str], widths: np.ndarray) -> Finished:
    plan = problem.graph.canonical(removed, widths)
    student = build_student(problem.teacher, problem.graph, plan)
    return plan, student, problem.meter.count(student, plan)


def _way_out(problem, rest) -> Finished:
    plan = problem.graph.canonical(rest.removed, rest.widths)
    return plan, build_student(problem.teacher, problem.graph, plan), dict(rest.usage)


def _within(usage: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(usage[name] <= limit for name, limit in limits.items())
