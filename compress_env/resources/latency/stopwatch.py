"""Latency of one forward pass, in milliseconds: measured in the runtime and on the device that will run the student.

Machines are noisy, so that a time alone means little. Each student is measured in turn with its teacher in one run, and what is
kept is the median of the ratios: what slows the machine down hits both. In milliseconds it is that ratio times the teacher's time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx, nn

from compress_env.resources.latency.operations import OperationCosts
from compress_env.resources.latency.runtimes import RuntimeConfig, kernel_times, node_times, prepare

TURN = 0.004  # seconds of a side's turn, at least three passes: warm, as they run in earnest
PRECISE = 0.02  # width of the interval, as a share of the ratio, with which a measurement is content
SECONDS, PAIRS = 1.0, 15  # of a measurement, at least
PATIENCE = 4  # times as long as asked for, if it is not


@dataclass(frozen=True)
class Paired:
    """A student measured in turn with its teacher.

    Attributes:
        ratio: The median of the ratios of their times.
        low: The lower end of its 95 % interval.
        high: The upper end.
        milliseconds: Medians of student and teacher.
        pairs: How many ratios there are.
    """

    ratio: float
    low: float
    high: float
    milliseconds: tuple[float, float]
    pairs: int


def compare(
    one: Callable, other: Callable, runtime: RuntimeConfig, seconds: float | None = None, at_least: int = PAIRS
) -> Paired:
    """Time `one` and `other` in turn, who is first changing, for `seconds` and `at_least` pairs; longer while it is imprecise.

    A turn counts with its fastest pass, since other processes only ever make passes slower. The interval is that of the median
    by order statistics, which assumes nothing about how times are distributed.
    """
    seconds = SECONDS if seconds is None else seconds
    times: tuple[list[float], list[float]] = ([], [])
    with runtime.active():
        passes = []
        for run in (one, other):
            run()
            passes.append(max(3, min(50, round(TURN / _fastest(run, 3, runtime)))))
        start = time.perf_counter()
        while True:
            order = (0, 1) if len(times[0]) % 2 == 0 else (1, 0)
            for side in order:
                run = (one, other)[side]
                run()  # what the other one pushed out of the caches comes back
                times[side].append(_fastest(run, passes[side], runtime))
            spent = time.perf_counter() - start
            if len(times[0]) < at_least or spent < seconds:
                continue
            ratio, low, high = _median(np.divide(*times))
            if high - low <= PRECISE * ratio or spent > PATIENCE * seconds:
                break
    milliseconds = float(np.median(times[0])) * 1e3, float(np.median(times[1])) * 1e3
    return Paired(ratio, low, high, milliseconds, len(times[0]))


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval."""
    ordered, n = np.sort(values), len(values)
    reach = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


def _fastest(run: Callable, passes: int, runtime: RuntimeConfig) -> float:
    """Seconds of the fastest of some passes."""
    best, clock = math.inf, runtime.clock
    for _ in range(passes):
        runtime.finish()
        start = clock()
        run()
        runtime.finish()
        best = min(best, clock() - start)
    return best


class Stopwatch:
    """Measures one teacher's students beside it; everything that looks at a clock is here."""

    def __init__(self, teacher: nn.Module, example: Tensor, runtime: RuntimeConfig):
        self.teacher, self.example, self.runtime = teacher, example[:1], runtime
        self._run: Callable | None = None

    def pair(self, student: nn.Module, seconds: float | None = None, at_least: int = PAIRS) -> Paired:
        """The student beside the teacher, which is prepared once."""
        if self._run is None:
            self._run = prepare(self.teacher, self.example, self.runtime)
        return compare(prepare(student, self.example, self.runtime), self._run, self.runtime, seconds, at_least)

    def nodes(self, student: fx.GraphModule, costs: OperationCosts, widths: np.ndarray, seconds: float = 0.2) -> Mapping[str, float]:
        """Milliseconds of each operation of the student, by the name of its node, while the whole student runs.

        In ONNX Runtime, what is left of layers and matrix products after its fusions is known by what they compute; what remains
        is shared among other operations by the numbers that they write. Those of `torch.compile` cannot be told apart and
        are taken from PyTorch eager, whose kernels it calls; it is calibrated on compiled students.
        """
        if self.runtime.runtime != "onnxruntime":
            return node_times(student, self.example, self.runtime, seconds)
        kernels = kernel_times(student, self.example, self.runtime, seconds)
        by_macs: dict[int, list[float]] = {}
        for kernel in kernels:
            by_macs.setdefault(kernel.macs, []).append(kernel.milliseconds)
        work = costs(widths)[0] * self.runtime.batch
        found, rest = {}, {}
        for name, macs, own in zip(costs.names, costs.computes, work):
            same = by_macs.get(round(float(own))) if macs else None
            if same:
                found[name] = float(np.mean(same))
            else:
                rest[name] = 0.0 if macs else float(own)
        left = max(0.0, sum(k.milliseconds for k in kernels) - sum(found.values()))
        written = sum(rest.values()) or 1.0
        return found | {name: left * own / written for name, own in rest.items()}
