"""`check_resource`: whether a resource predicts what it counts, or measures and repairs as a budget needs it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from compress_env.distill.checkpoint import snapshot
from compress_env.resources.base import (
    RESOURCES,
    Context,
    MeasuredResource,
    Measurement,
    Resource,
    Room,
)
from compress_env.resources.cost_model import CostModel
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph, PrunedView
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.testing import networks
from compress_env.testing.require import calling, named, number, require

SLOW = 0.02
"""Seconds that a prediction may take at most: a search asks for hundreds a student."""


def check_resource(
    resource: Any, teacher: nn.Module | None = None, example: Tensor | None = None, *, plans: int = 12, seed: int = 0
) -> None:
    """Check that a resource keeps what budgets rely on, with students of random plans of one teacher.

    A computed one predicts exactly what it counts, costs no less with more channels or more blocks, and takes columns of widths if it
    says so. A measured one gives the same number for the same plan, and repairs only to students that are within all limits.

    Args:
        resource: A name, `module:attribute` or `path/to/file.py:attribute`, a class or an object.
        teacher: A module in evaluation mode; `resnet8-digits` if None.
        example: Inputs for it, `(n, ...)`.
        plans: How many random plans are tried.
        seed: Of the random plans.

    Raises:
        AssertionError: Naming the resource and what is wrong.
    """
    what = named("resource", resource)
    with calling(what):
        entry = RESOURCES.get(resource) if isinstance(resource, str) else resource
        found: Any = entry() if isinstance(entry, type) else entry
    require(
        isinstance(found, (Resource, MeasuredResource)),
        f"{what} derives neither from compress_env.resources.base.Resource nor from MeasuredResource",
    )
    require(isinstance(getattr(found, "unit", None), str), f"{what} has no unit, such as unit = 'mJ'")
    for unit, factor in found.multiples.items():
        require(
            number(factor, f"{what}: the unit {unit!r}") > 0, f"{what}: one {unit} has to be more than 0 {found.unit}"
        )
    if teacher is None or example is None:
        teacher, example = networks.shipped("resnet8-digits")
    graph = trace(teacher, example)
    if isinstance(found, Resource):
        _check_computed(what, found, teacher, graph, example[:1], plans, seed)
    else:
        _check_measured(what, found, teacher, graph, example[:1], seed)


def _check_computed(
    what: str, resource: Resource, teacher: nn.Module, graph: LayerGraph, example: Tensor, plans: int, seed: int
) -> None:
    for plan in networks.plans(graph, plans, seed):
        student = build_student(teacher, graph, plan)
        before = snapshot(student)
        view, widths = graph.view(plan.switched), graph.widths(plan)
        with calling(f"{what}: count"):
            counted = number(resource.count(student, example), f"{what}: count")
        require(networks.same(student, before) and not student.training, f"{what}: count changes the student")
        predicted = _predicted(what, resource, view, widths)
        require(counted >= 0, f"{what}: count finds {counted} for {plan}, which is less than nothing")
        require(
            math.isclose(predicted, counted, rel_tol=1e-9),
            f"{what}: predict says {predicted} and count finds {counted} for the student of {plan}",
        )
        for name in graph.blocks.keys() - set(plan.removed):
            less = _predicted(what, resource, graph.view(frozenset([*plan.removed, name])), widths)
            require(less <= predicted, f"{what}: {plan} costs {predicted}, and {less} without the block {name!r} too")
        _check_columns(what, resource, view, graph.levels[0])
    _check_speed(what, resource, graph)


def _predicted(what: str, resource: Resource | Measurement, view: PrunedView, widths: np.ndarray) -> float:
    with calling(f"{what}: predict"):
        return number(resource.predict(view, widths), f"{what}: predict")


def _check_columns(what: str, resource: Resource, view: PrunedView, columns: np.ndarray) -> None:
    """Columns of widths `(groups, n)` that grow cost no less, and cost together what each one costs."""
    single = np.array([_predicted(what, resource, view, columns[:, i]) for i in range(columns.shape[1])])
    falls = np.flatnonzero(np.diff(single) < -1e-9 * np.abs(single[:-1]))
    if falls.size:
        i = int(falls[0])
        raise AssertionError(f"{what}: predict says {single[i + 1]} for more channels and {single[i]} for fewer")
    if resource.vectorised:
        with calling(f"{what}: predict with columns of widths"):
            together = np.asarray(resource.predict(view, columns))
        require(
            together.shape == single.shape,
            f"{what}: predict gives {together.shape} for {len(single)} columns of widths, or is not vectorised",
        )
        require(
            np.allclose(together, single, rtol=1e-9),
            f"{what}: predict gives other numbers for columns of widths together",
        )


def _check_speed(what: str, resource: Resource | Measurement, graph: LayerGraph) -> None:
    view, best = graph.view(frozenset()), math.inf
    for _ in range(20):
        began = time.perf_counter()
        resource.predict(view, graph.full)
        best = min(best, time.perf_counter() - began)
    require(best < SLOW, f"{what}: predict takes {best * 1e3:.0f} ms; a search asks hundreds of times a student")


def _check_measured(
    what: str, resource: MeasuredResource, teacher: nn.Module, graph: LayerGraph, example: Tensor, seed: int
) -> None:
    whole = build_student(teacher, graph, Plan())
    runtime = RuntimeConfig()
    with calling(f"{what}: prepare"):
        ready = resource.prepare(Context(whole, teacher, graph, example, runtime))
    require(isinstance(ready, Measurement), f"{what}: prepare gives {ready!r} instead of a Measurement")
    usage_of_teacher = number(ready.teacher, f"{what}: the teacher's usage")
    require(usage_of_teacher > 0, f"{what}: the teacher uses {usage_of_teacher}, which has to be more than 0")
    full = _predicted(what, ready, graph.view(frozenset()), graph.full)
    require(
        0.5 < full / usage_of_teacher < 2,
        f"{what}: predict says {full} for the whole network, whose measured usage is {usage_of_teacher}",
    )
    _check_speed(what, ready, graph)
    known, other = networks.plans(graph, 1, seed)[1:3]
    student = build_student(teacher, graph, known)
    before = snapshot(student)
    with calling(f"{what}: measuring a student"):
        first = number(ready.measure(student, known), f"{what}: measuring a student")
        second = ready.measure(student, known)
    require(first > 0, f"{what}: a student uses {first}, which has to be more than 0")
    require(first == second, f"{what}: the same plan measures {first} first and {second} then")
    require(networks.same(student, before), f"{what}: measuring changes the student")
    ready.remember(other, 0.25 * usage_of_teacher, usage_of_teacher)
    told = ready.measure(build_student(teacher, graph, other), other)
    require(
        math.isclose(told, 0.25 * usage_of_teacher),
        f"{what}: a plan that was remembered with {0.25 * usage_of_teacher} measures {told}",
    )
    _check_repair(what, ready, teacher, graph, example)


def _check_repair(what: str, ready: Measurement, teacher: nn.Module, graph: LayerGraph, example: Tensor) -> None:
    costs, name = CostModel(teacher, graph, example), "the resource"

    def count(student: Any, plan: Plan) -> dict[str, float]:
        return {**costs.count(student, plan), name: ready.measure(student, plan)}

    def predicted(of: str, view: PrunedView, widths: np.ndarray) -> float:
        return _predicted(what, ready, view, widths) if of == name else costs.predict(of, view, widths)

    def fits(view: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> bool:
        return all(predicted(of, view, widths) <= limit for of, limit in limits.items())

    removable, shrinkable = frozenset(graph.blocks), np.ones(len(graph.groups), bool)
    for share in (2.0, 0.0):
        limits = {name: share * ready.teacher, "params": 0.7 * costs.teacher["params"]}
        room = Room(teacher, graph, removable, shrinkable, graph.floor, limits, count, fits)
        with calling(f"{what}: repair"):
            found = ready.repair(name, frozenset(), graph.floor, room)
        if found is None:
            require(share == 0, f"{what}: repair finds no student within twice what the teacher uses")
            continue
        usage = count(build_student(teacher, graph, found.plan), found.plan)
        within = found.meets(limits) and all(usage[n] <= limit for n, limit in limits.items())
        require(within, f"{what}: repair gives a student of {usage} for limits of {limits}")
