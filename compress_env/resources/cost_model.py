"""The cost model: predicts the usage of plans of one teacher in microseconds, and counts it on students that were built."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from compress_env.contexts import one_thread, seeded
from compress_env.resources import BUILT_IN
from compress_env.resources.base import (
    RESOURCES,
    Candidate,
    Context,
    MeasuredResource,
    Measurement,
    Resource,
    Room,
)
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph, PrunedView
from compress_env.surgery.plan import Plan

_AT_ONCE = 96  # more widths than this are searched in two stages


class CostModel:
    """What students of one teacher cost, by resource.

    Attributes:
        graph: What was found in the teacher.
        names: The resources that are counted: those computed ones that come with the package, and those asked for. Measured ones last.
        measured: Those of them that only running a student tells.
        teacher: Usage of the teacher, by resource, in its unit.
        example: One example with the batch in front, `(1, ...)`.
        runtime: What will run the student.
    """

    def __init__(
        self,
        teacher: nn.Module,
        graph: LayerGraph,
        example: Tensor,
        names: Collection[str] = (),
        runtime: RuntimeConfig | None = None,
        progress: bool = False,
    ):
        """Counts the teacher, and gets ready to measure what has to be measured.

        Args:
            teacher: The module that students are built from; not changed.
            graph: What was found in it.
            example: Inputs, the batch in front; the first one is counted with.
            names: Resources to count beside the computed ones that come with the package, as those of a budget.
            runtime: What will run the student, PyTorch on one CPU thread if None.
            progress: Whether to show how far measuring is.

        Raises:
            UnknownName: There is no resource of a name.
        """
        self.graph, self.runtime = graph, runtime or RuntimeConfig()
        self.example = example[:1]
        asked = {resource.name: resource for resource in map(RESOURCES.get, names)}
        every = {name: RESOURCES.get(name) for name in BUILT_IN} | asked
        self._computed = {n: r for n, r in sorted(every.items()) if isinstance(r, Resource)}
        measured = {n: r for n, r in sorted(asked.items()) if isinstance(r, MeasuredResource)}
        self.names = [*self._computed, *measured]
        self.measured = frozenset(measured)
        whole = build_student(teacher, graph, Plan())
        self._context = Context(whole, teacher, graph, self.example, self.runtime, progress)
        self.teacher = self._count(whole)
        self._measurements: dict[str, Measurement] = {n: r.prepare(self._context) for n, r in measured.items()}
        self.teacher |= {name: ready.teacher for name, ready in self._measurements.items()}
        predictable: dict[str, Resource | Measurement] = {**self._computed, **self._measurements}
        self._predict: dict[str, Callable[[PrunedView, np.ndarray], Any]] = {n: r.predict for n, r in predictable.items()}
        self._vectorised = {n for n, r in predictable.items() if r.vectorised}

    def predict(self, name: str, view: PrunedView, widths: np.ndarray) -> float:
        """Usage of one resource by what is left of the teacher.

        Args:
            name: The resource.
            view: What is left without the removed blocks.
            widths: Channels that each group keeps `(groups,)`.

        Returns:
            The usage in the resource's unit.
        """
        return self._predict[name](view, widths)

    def predict_many(self, name: str, view: PrunedView, widths: np.ndarray) -> np.ndarray:
        """As `predict`, for columns of widths `(groups, n)`, each of which gives one of `(n,)`."""
        predict = self._predict[name]
        if name in self._vectorised:
            return np.asarray(predict(view, widths), float)
        return np.array([predict(view, column) for column in widths.T], float)

    def predict_all(self, removed: frozenset[str], widths: np.ndarray) -> dict[str, float]:
        """Usage of every resource without these blocks and with these widths `(groups,)`."""
        view = self.graph.view(removed)
        return {name: self.predict(name, view, widths) for name in self.names}

    def fits(self, view: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> bool:
        """Whether the network with these widths `(groups,)` is predicted to meet all limits."""
        for name, limit in limits.items():
            if self._predict[name](view, widths) > limit:
                return False
        return True

    def fits_each(self, view: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> np.ndarray:
        """As `fits`, for columns of widths `(groups, n)`: `(n,)`."""
        fit = np.ones(widths.shape[1], bool)
        for name, limit in limits.items():
            fit &= self.predict_many(name, view, widths) <= limit
        return fit

    def last_fitting(self, view: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> int:
        """For columns of widths `(groups, k)` that grow from each to the next, the last up to which all meet the limits, or -1."""
        return int(self.last_fitting_each(view, widths[:, None], limits)[0])

    def last_fitting_each(self, view: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> np.ndarray:
        """As `last_fitting` for each of several series of columns `(groups, n, k)`: `(n,)`."""
        _, series, most = widths.shape
        if most > _AT_ONCE:  # where to look closer
            stride = math.isqrt(most)
            begin = self.last_fitting_each(view, widths[:, :, ::stride], limits) * stride
            near = np.minimum(np.maximum(begin, 0)[:, None] + np.arange(stride), most - 1)
            within = self.last_fitting_each(view, np.take_along_axis(widths, near[None], 2), limits)
            return np.where(begin < 0, -1, np.take_along_axis(near, np.maximum(within, 0)[:, None], 1)[:, 0])
        last = np.full(series, most - 1)
        for number, (name, limit) in enumerate(limits.items()):
            if not number:
                last = self._last_within(name, view, widths, limit)
            elif len(which := (last >= 0).nonzero()[0]):
                which = which[self.predict_many(name, view, widths[:, which, last[which]]) > limit]  # those before may be tighter
                if len(which):
                    tighter = self._last_within(name, view, widths[:, which, : last[which].max() + 1], limit)
                    last[which] = np.minimum(last[which], tighter)
        return last

    def _last_within(self, name: str, view: PrunedView, widths: np.ndarray, limit: float) -> np.ndarray:
        groups, series, most = widths.shape
        predict = self._predict[name]
        if name in self._vectorised:
            fit = (predict(view, widths.reshape(groups, -1)) <= limit).reshape(series, most)
            return np.where(fit.all(1), most, fit.argmin(1)) - 1
        return np.array([bisect_left(range(most), True, key=lambda j: predict(view, columns[:, j]) > limit) - 1
                         for columns in np.moveaxis(widths, 1, 0)], int)  # fmt: skip

    @seeded()
    def count(self, student: fx.GraphModule, plan: Plan) -> dict[str, float]:
        """Usage of the student of a plan that was really built, by resource. A measured one is measured once a plan."""
        return self._count(student) | {name: ready.measure(student, plan) for name, ready in self._measurements.items()}

    def _count(self, module: fx.GraphModule) -> dict[str, float]:
        """What is computed, on one example: a forward pass costs less than its shadow on the meta device."""
        with one_thread():
            return {name: resource.count(module, self.example) for name, resource in self._computed.items()}

    @seeded()
    def compare(self, student: fx.GraphModule, plan: Plan) -> tuple[dict[str, float], dict[str, float]]:
        """Usage of the teacher and of a student for a report: that of `count`, and measured resources that come with the package."""
        teacher, usage = dict(self.teacher), self.count(student, plan)
        for name in BUILT_IN:
            resource = RESOURCES.get(name)
            if isinstance(resource, MeasuredResource) and name not in usage:
                teacher[name], usage[name] = resource.compare(self._context, student)
        return teacher, usage

    def remember(self, plan: Plan, usage: Mapping[str, float], teacher_usage: Mapping[str, float]) -> None:
        """Take what was measured of a plan as recorded beside its teacher's, as in an earlier run: it is not measured again."""
        for name, ready in self._measurements.items():
            if name in usage and name in teacher_usage:
                ready.remember(plan, usage[name], teacher_usage[name])

    def repair(
        self,
        removed: frozenset[str],
        widths: np.ndarray,
        limits: Mapping[str, float],
        *,
        removable: frozenset[str],
        shrinkable: np.ndarray,
        smallest: np.ndarray,
    ) -> Candidate | None:
        """A student within all limits, as near to the given choices as measuring allows.

        Where no limited resource is measured, predictions are exact and the student of the choices is all that is tried. Otherwise a
        student may also grow where the budget was spent by a prediction that was too high.

        Args:
            removed: Blocks that the student lacks.
            widths: Its widths `(groups,)`.
            limits: By resource, in its unit.
            removable: Blocks that may be removed.
            shrinkable: Mask `(groups,)` of groups whose widths may change.
            smallest: Widths `(groups,)` with which all limits can be met.

        Returns:
            The plan, its student and the usage counted on it, or None if no student was found.
        """
        teacher = self._context.teacher
        room = Room(teacher, self.graph, removable, shrinkable, smallest, limits, self.count, self.fits)
        measured = [name for name in limits if name in self.measured]
        if not measured:
            found = room.build(removed, widths)
            return found if found.meets(limits) else None
        for name in measured:
            better = self._measurements[name].repair(name, removed, widths, room)
            if better is not None:
                return better
        return None
