"""Predicted latency: what each operation takes, measured once on real students at several widths, added up and calibrated.

An operation's time follows what it computes, but not smoothly: kernels work on 8 or 16 channels at a time, and other numbers fall
back to slower ones (a MobileNetV2 with odd widths takes three times as long in ONNX Runtime as one with multiples of 8).
So operations have one curve over their work for each *grade*: channels that are multiples of 16, of 8, of 4, or of none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy.optimize import nnls
from torch import nn

from compress_env.resources.latency.operations import GRADES, MULTIPLES, OperationCosts
from compress_env.resources.latency.stopwatch import Stopwatch
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph, PrunedView

SHARES = (1.0, 0.75, 0.5, 0.3, 0.15)  # of channels, the same for all groups, at which operations are measured
MIXED = 8  # students with random removals and widths, for the calibration alone
FEW = 3  # where a student takes long to prepare


class Table:
    """Predicts the latency of plans of one teacher.

    Attributes:
        data: As it is stored in JSON.
        teacher_ms: Milliseconds of the teacher.
    """

    def __init__(self, graph: LayerGraph, data: Mapping[str, Any]):
        """Reads the data that `measure_table` gives.

        Args:
            graph: Of the teacher that was measured.
            data: `teacher_ms`; `points`, for each operation and grade pairs of work and milliseconds; `weights` of the time of
                layers, the time of other operations, and the number of operations.

        Raises:
            ValueError, LookupError, TypeError: It is not such data.
        """
        self.data, self.teacher_ms = dict(data), float(data["teacher_ms"])
        self._weights = np.array(data["weights"], float)
        if self._weights.shape != (3,) or not np.isfinite([*self._weights, self.teacher_ms]).all():
            raise ValueError("weights")
        self._row = {name: i for i, name in enumerate(data["points"])}
        curves = [_curves(points) for points in data["points"].values()]
        length = max(len(x) for grades in curves for x, _ in grades)
        shape = (len(curves), GRADES, length)
        self._x, self._y = np.full(shape, np.inf), np.zeros(shape)
        for i, grades in enumerate(curves):
            for j, (x, y) in enumerate(grades):
                self._x[i, j, : len(x)], self._y[i, j, : len(y)] = x, y
                self._y[i, j, len(y) :] = y[-1]
        self._views: WeakKeyDictionary[PrunedView, tuple[OperationCosts, np.ndarray, np.ndarray]] = WeakKeyDictionary()
        self.scale = 1.0
        self.scale = self.teacher_ms / self.predict(graph.view(frozenset()), graph.full)

    def predict(self, view: PrunedView, widths: np.ndarray) -> float:
        """Milliseconds of a plan, its widths `(groups,)`; a prediction, which measuring the student verifies."""
        return float(self.scale * (self.features(view, widths) @ self._weights))

    def features(self, view: PrunedView, widths: np.ndarray) -> np.ndarray:
        """Milliseconds of layers, of other operations, and the number of operations."""
        if view not in self._views:
            costs = OperationCosts(view)
            rows = np.array([self._row[name] for name in costs.names])
            self._views[view] = costs, rows, costs.computes.astype(float)
        costs, rows, computes = self._views[view]
        work, grade = costs(widths)
        x, y = self._x[rows, grade], self._y[rows, grade]
        every = np.arange(len(rows))
        right = np.clip((x <= work[:, None]).sum(1), 1, x.shape[1] - 1)
        x0, x1, y0, y1 = x[every, right - 1], x[every, right], y[every, right - 1], y[every, right]
        between = np.clip((work - x0) / (x1 - x0), 0, None)  # 0 right of the last point, whose next one is at infinity
        larger = np.where(
            np.isinf(x1), np.maximum(1, work / x0), 1
        )  # a repaired layer may be larger than the teacher's
        times = (y0 + between * (y1 - y0)) * larger
        layers = times @ computes
        return np.array([layers, times.sum() - layers, len(rows)])


def _curves(points: Mapping[str, list]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Work and time that rises with it, for each grade; one that was not measured is as the nearest that was."""
    from sklearn.isotonic import isotonic_regression  # importing it takes a third of a second

    own = {}
    for grade, pairs in points.items():
        array = np.array(sorted(map(tuple, pairs)), float)
        x, where = np.unique(array[:, 0], return_inverse=True)
        y = np.bincount(where, array[:, 1]) / np.bincount(where)
        own[int(grade)] = np.append(x, np.inf), isotonic_regression(np.append(y, y.max()))
    return [own[min(own, key=lambda g: abs(g - grade))] for grade in range(GRADES)]


Sample = tuple[frozenset[str], np.ndarray]
"""Removed blocks and widths `(groups,)` of a student to measure."""


def measure_table(
    teacher: nn.Module,
    graph: LayerGraph,
    stopwatch: Stopwatch,
    progress: Callable[[list[Sample]], Iterable[Sample]] = lambda samples: samples,
) -> dict[str, Any]:
    """Measures students at each share and grade and some with random removals, whole and by operation.

    Args:
        teacher: The module that students are built from.
        graph: What was found in it.
        stopwatch: Measures them.
        progress: Wraps the list of samples, as `tqdm`.

    Returns:
        The data that `Table` takes.
    """
    few = stopwatch.runtime.runtime == "compile"
    samples = _samples(graph)
    points: dict[str, dict[str, list]] = {name: {} for name in OperationCosts(graph.view(frozenset())).names}
    whole, teacher_ms = [], []
    for i, (removed, widths) in enumerate(progress(samples)):
        plan = graph.canonical(removed, widths)
        student = build_student(teacher, graph, plan)
        network = graph.view(plan.switched)
        if not removed:
            costs = OperationCosts(network)
            times = stopwatch.nodes(student, costs, widths)
            for name, work, grade in zip(costs.names, *costs(widths)):
                if name in times:
                    points[name].setdefault(str(int(grade)), []).append([float(work), times[name]])
        if not few or i % max(1, len(samples) // FEW) == 0:
            pair = stopwatch.pair(student, 0.25, 7)
            whole.append((network, widths, pair.ratio))
            teacher_ms.append(pair.milliseconds[1])
    data = {"teacher_ms": float(np.median(teacher_ms)), "points": points, "weights": [1.0, 1.0, 0.0]}
    table = Table(graph, data)
    features = np.array([table.features(network, widths) for network, widths, _ in whole])
    ratios = np.array([ratio for _, _, ratio in whole])
    weights, _ = nnls(features / ratios[:, None], np.ones(len(ratios)))  # relative errors count
    if weights @ features[0] <= 0:
        weights = np.array([1.0, 1.0, 0.0])
    return data | {"weights": weights.tolist()}


def _samples(graph: LayerGraph) -> list[Sample]:
    """Removed blocks and widths to measure, the teacher's first."""
    rng = np.random.default_rng(0)
    found: list[Sample] = [(frozenset(), graph.full)]
    for share in SHARES[1:]:
        wish = share * graph.full
        found.append((frozenset(), graph.allowed(np.maximum(1, np.round(wish / MULTIPLES[0])) * MULTIPLES[0])))
        for multiple in (*MULTIPLES[1:], 1):  # the nearest that are no multiples of more
            odd = np.maximum(1, 2 * np.round((wish / multiple - 1) / 2) + 1)
            found.append((frozenset(), graph.allowed(np.minimum(odd * multiple, graph.full))))
    for i in range(MIXED):
        removed = frozenset(u for u in graph.blocks if rng.random() < (0.2, 0.5)[i % 2])
        share = rng.uniform(0.2, 1)
        widths = graph.allowed(np.floor(graph.full * rng.uniform(share, 1, len(graph.full))))
        found.append((removed, widths if i % 4 else graph.full))
    unique = {(removed, tuple(widths.tolist())): (removed, widths) for removed, widths in found}
    return list(unique.values())
