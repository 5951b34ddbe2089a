"""Latency of one forward pass: predicted from a table of operations, measured on students beside their teacher, and repaired."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import fx
from tqdm.auto import tqdm

from compress_env.resources.base import RESOURCES, Candidate, Context, MeasuredResource, Measurement, Room
from compress_env.resources.latency.cache import LatencyCache
from compress_env.resources.latency.repair import Repair
from compress_env.resources.latency.stopwatch import Stopwatch
from compress_env.resources.latency.table import Sample, measure_table
from compress_env.surgery.graph import PrunedView
from compress_env.surgery.plan import Plan


@RESOURCES.register("latency")
class Latency(MeasuredResource):
    """Milliseconds of one forward pass, in the runtime and on the device that will run the student."""

    label, unit = "Latency", "ms"
    multiples = {"us": 1e-3, "ms": 1, "s": 1e3}
    channel_multiple = 8  # kernels compute 8 or 16 at a time; MobileNetV2 with odd widths takes ONNX Runtime three times as long

    def prepare(self, context: Context) -> MeasuredLatency:
        """Reads what this device has measured of the teacher's architecture before, or measures its table."""
        return MeasuredLatency(context)

    def compare(self, context: Context, student: fx.GraphModule) -> tuple[float, float]:
        """Milliseconds of the teacher, and of the student by their ratio, from one measurement of both in turn."""
        pair = Stopwatch(context.whole, context.example, context.runtime).pair(student)
        return pair.milliseconds[1], pair.ratio * pair.milliseconds[1]


class MeasuredLatency(Measurement):
    """Latency of the students of one teacher on this device."""

    def __init__(self, context: Context):
        self._stopwatch = Stopwatch(context.whole, context.example, context.runtime)
        self._cache = LatencyCache(context.graph, context.runtime)

        def shown(samples: list[Sample]) -> Iterable[Sample]:
            text = f"measuring {context.runtime.label}"
            return tqdm(samples, desc=text, unit="student", disable=not context.progress, delay=2)

        self._table = self._cache.table(
            context.graph, lambda: measure_table(context.teacher, context.graph, self._stopwatch, shown)
        )
        super().__init__(self._table.teacher_ms)
        self._known |= self._cache.plans()

    def predict(self, view: PrunedView, widths: np.ndarray) -> float:
        """Milliseconds of a plan by the table."""
        return self._table.predict(view, widths)

    def run(self, student: fx.GraphModule) -> float:
        """Milliseconds of a student: how much of the teacher's time it takes beside it, times the teacher's."""
        return self._stopwatch.pair(student).ratio * self.teacher

    def keep(self, plan: Plan, usage: float) -> None:
        """Write a measurement into this device's cache."""
        self._cache.add(plan.key, usage)

    def repair(self, name: str, removed: frozenset[str], widths: np.ndarray, room: Room) -> Candidate | None:
        """A student within all limits whose latency is just below its own; see `latency/repair.py`."""
        return Repair(self, name, room).search(removed, widths)
