"""Budgets: limits on resources, read from numbers and strings, and the cost_model that predicts and counts usage."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from compress_env.contexts import one_thread
from compress_env.errors import UserError
from compress_env.registry import Registry, unknown
from compress_env.resources import macs, memory, params
from compress_env.resources.latency import stopwatch as latency
from compress_env.resources.latency.cache import LatencyCache
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.resources.latency.table import measure_table
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph, PrunedView
from compress_env.surgery.plan import Plan

RESOURCES = Registry("resource")
"""Each has a UNIT, `predict(network, widths)`, exact and in microseconds, and `count(model, example)` for one example; latency
alone is measured instead. A new one is a module or an object with these three, registered before an environment is made. If it has
`MANY = True`, `predict` also takes many widths as columns `(groups, n)` and gives `(n,)`, which makes decisions faster."""
RESOURCES.register("params")(params)
RESOURCES.register("macs")(macs)
RESOURCES.register("memory")(memory)
RESOURCES.register(latency.NAME)(latency)
_MULTIPLES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
              "B": 1, "MS": 1, "S": 1e3, "US": 1e-3, "%": 0.01}  # fmt: skip

_AT_ONCE = 96  # more widths than this are searched in two stages


@dataclass(frozen=True)
class Limit:
    """A limit as given: a share of the teacher's usage, or an absolute value in the resource's unit."""

    value: float
    share: bool

    def absolute(self, teacher: float) -> float:
        return self.value * teacher if self.share else self.value


def parse_limit(value: float | int | str) -> Limit:
    """At most 1 is a share of the teacher, more is absolute; strings may say which: "50%", "300K", "2.5ms", "1MiB".

    Raises UserError if it is no positive number or the unit is unknown.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*", value)
        if not match or match[2].upper() not in _MULTIPLES:
            raise UserError(f"cannot read the budget {value!r}; examples: 0.5, 50%, 300K, 20M, 2.5ms, 1MiB")
        number, unit = float(match[1]), match[2].upper()
        limit = Limit(number * _MULTIPLES[unit], unit == "%" or (unit == "" and number <= 1))
    else:
        limit = Limit(float(value), value <= 1)
    if not limit.value > 0 or not np.isfinite(limit.value):
        raise UserError(f"a budget has to be positive, got {value!r}")
    return limit


def parse_budget(budget: Mapping[str, object]) -> dict[str, tuple[Limit, Limit]]:
    """For each resource its lowest and highest limit; a single value stands for both, a pair `[low, high]` is a range."""
    if not budget:
        raise UserError(
            f"the budget is empty; give at least one of {', '.join(RESOURCES.names())}, for example macs=0.5"
        )
    parsed = {}
    for name, value in budget.items():
        if name not in RESOURCES.names():
            raise UserError(f"budget: {unknown('resource', name, RESOURCES.names())}")
        pair = value if isinstance(value, (list, tuple)) else (value, value)
        if len(pair) != 2:
            raise UserError(f"budget: {name} needs a value or a pair [low, high], got {value!r}")
        low, high = (parse_limit(v) for v in pair)
        if low.share != high.share or low.value > high.value:
            raise UserError(f"budget: {name}: {value!r} is not a range from low to high in one unit")
        parsed[name] = (low, high)
    return parsed


def amount(value: float) -> str:
    """A usage for messages: counts in full, since they are limits to ask for next; small measurements with four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


class CostModel:
    """Predicts the usage of plans in microseconds and counts it on built students, for one teacher on this device.

    setting: what a latency is measured with. stopwatch: measures it, `latency.Stopwatch` if None. Latencies of the teacher's
    architecture that this device has measured before are taken from its cache.
    """

    def __init__(
        self,
        teacher: nn.Module,
        graph: LayerGraph,
        example: Tensor,
        with_latency: bool,
        setting: RuntimeConfig | None = None,
        progress: bool = False,
        stopwatch: latency.Stopwatch | None = None,
    ):
        self.graph, self.example, self.setting = graph, example[:1], setting or RuntimeConfig()
        self._exact = {name: resource for name, resource in RESOURCES.items() if resource is not latency}
        self.names = [*self._exact]
        self._many = {name for name, resource in self._exact.items() if getattr(resource, "MANY", False)}
        whole = build_student(teacher, graph, Plan())
        self.teacher = self._count(whole)
        self.stopwatch = stopwatch or latency.Stopwatch(whole, self.example, self.setting)
        self._table = None
        self._measured: dict[str, list[float]] = {}  # milliseconds of each measurement, by the key of the plan
        if with_latency:
            self.names.append(latency.NAME)
            self._cache = LatencyCache(graph, self.setting)

            def shown(samples):
                text = f"measuring {self.setting.label}"
                return tqdm(samples, desc=text, unit="student", disable=not progress, delay=2)

            self._table = self._cache.table(graph, lambda: measure_table(teacher, graph, self.stopwatch, shown))
            self._measured |= self._cache.plans()
            self.teacher[latency.NAME] = self._table.teacher_ms

    def predict(self, name: str, network: PrunedView, widths: np.ndarray) -> float:
        """Usage of one resource by the network with these widths `(groups,)`."""
        if name == latency.NAME:
            return self._table.predict(network, widths)
        return self._exact[name].predict(network, widths)

    def fits(self, network: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> bool:
        """Whether the network with these widths `(groups,)` is predicted to meet all limits."""
        for name, limit in limits.items():
            if self.predict(name, network, widths) > limit:
                return False
        return True

    def last_fitting(self, network: PrunedView, widths: np.ndarray, limits: Mapping[str, float]) -> int:
        """For columns of widths `(groups, n)` that grow from each to the next, the last up to which all meet the limits, or -1."""
        start, stop = 0, widths.shape[1]
        stride = math.isqrt(stop) if stop > _AT_ONCE else 1
        if stride > 1:  # where to look closer
            coarse = self.last_fitting(network, widths[:, ::stride], limits)
            start, stop = max(0, coarse * stride), min(stop, (coarse + 1) * stride)
        for name, limit in limits.items():
            if stop == start or stop < widths.shape[1] and self.predict(name, network, widths[:, stop - 1]) <= limit:
                continue  # a limit before this one is tighter
            if name in self._many:
                fit = self.predict(name, network, widths[:, start:stop]) <= limit
                stop = start + (len(fit) if fit.all() else int(fit.argmin()))
            else:
                stop = bisect_left(
                    range(start, stop), True, key=lambda i, n=name, m=limit: self.predict(n, network, widths[:, i]) > m
                ) + start  # fmt: skip
        return stop - 1

    def predict_all(self, removed: frozenset[str], widths: np.ndarray) -> dict[str, float]:
        network = self.graph.view(removed)
        return {name: self.predict(name, network, widths) for name in self.names}

    def count(self, student: nn.Module, plan: Plan) -> dict[str, float]:
        """Usage of the student that was really built. Latency is measured beside the teacher's, once a plan on this device."""
        return self._count(student) | self._latency(student, plan, 1)

    def settle(self, student: nn.Module, plan: Plan) -> dict[str, float]:
        """The same, latency being the mean of two measurements at least."""
        return self._count(student) | self._latency(student, plan, 2)

    def _latency(self, student: nn.Module, plan: Plan, times: int) -> dict[str, float]:
        if not self._table:
            return {}
        measured = self._measured.setdefault(plan.key, [])
        while len(measured) < times:
            measured.append(self.stopwatch.pair(student).ratio * self.teacher[latency.NAME])
            self._cache.add(plan.key, measured[-1])
        return {latency.NAME: float(np.mean(measured))}

    def remember(self, plan: Plan, usage: Mapping[str, float], teacher: Mapping[str, float]) -> None:
        """Take the latency of a plan as recorded beside its teacher's, as from an earlier run: it is not measured again."""
        if self._table and latency.NAME in usage and teacher.get(latency.NAME):
            ratio = usage[latency.NAME] / teacher[latency.NAME]
            same = teacher[latency.NAME] == self.teacher[latency.NAME]
            known = usage[latency.NAME] if same else ratio * self.teacher[latency.NAME]
            self._measured[plan.key] = [known, known]  # settled

    def _count(self, module: nn.Module) -> dict[str, float]:
        """What is counted rather than measured, on one example: a forward pass costs less than its shadow on the meta device."""
        with one_thread():
            return {name: resource.count(module, self.example) for name, resource in self._exact.items()}
