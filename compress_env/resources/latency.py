"""Latency of one forward pass on this device, in milliseconds: predicted from measured operations, verified on the real module."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.surgery.graph import Op, Reduced
from compress_env.threads import one_thread

NAME, UNIT = "latency", "ms"
LEVELS = 8  # widths are measured in steps of 1/8 of the teacher's


def measure(models: list[nn.Module], example: Tensor, seconds: float = 0.3) -> list[float]:
    """Median milliseconds of a forward pass of each module, batch 1, one thread, measured in turn so that drift hits all alike."""
    example = example[:1]
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode(), one_thread():
        for model in models:
            for _ in range(3):
                model(example)
        end = time.perf_counter() + seconds * len(models)
        while time.perf_counter() < end or len(times[0]) < 5:
            for model, own in zip(models, times):
                start = time.perf_counter()
                model(example)
                own.append(time.perf_counter() - start)
    return [float(np.median(own)) * 1e3 for own in times]


class Table:
    """Predicts latency as the sum of its operations, each measured once alone at the width rounded up to a level.

    The sum is scaled so that the teacher's prediction equals its measured latency; that covers what lies between the operations.
    """

    def __init__(self, network: Reduced, widths: np.ndarray, teacher: nn.Module, example: Tensor):
        self._milliseconds: dict[tuple, float] = {}
        self.scale = 1.0
        self.teacher_ms = measure([teacher], example, 1.0)[0]
        self.scale = self.teacher_ms / self.predict(network, widths)

    def predict(self, network: Reduced, widths: np.ndarray) -> float:
        """Milliseconds of the network with these widths `(groups,)`; not exact, so it is verified by `measure`."""
        matrix, fixed = network.op_channels
        channels = dict(zip((op.name for op in network.ops), matrix @ widths + fixed))
        return self.scale * sum(self._op(network, op, channels) for op in network.ops if not op.view and op.inputs)

    def _op(self, network: Reduced, op: Op, channels: dict[str, float]) -> float:
        full = network.graph.ops
        sizes = []
        for name in (op.inputs[0], op.name):
            teacher = max(1, _size(network, full[name].channels))
            step = max(1, teacher / LEVELS)
            sizes.append(int(min(max(teacher, channels[name]), np.ceil(np.ceil(channels[name] / step) * step))))
        layer = network.graph.layers.get(op.layer) if op.layer else None
        if layer is not None and layer.kind in ("conv", "linear", "depthwise", "grouped"):
            key = (layer.kind, layer.kernel_size, layer.stride, layer.groups, layer.positions_in, *sizes)
            run = _layer_runner
        else:
            key = (op.what, op.elements, full[op.inputs[0]].elements, *sizes)
            run = _elementwise_runner
        if key not in self._milliseconds:
            self._milliseconds[key] = _time(run(key))
        return self._milliseconds[key]


def _size(network: Reduced, channels) -> int:
    return channels.fixed + sum(r * network.graph.groups[g].size for g, r in channels.parts)


def _layer_runner(key):
    kind, kernel, stride, groups, positions, inputs, outputs = key
    if kind == "linear":
        module, x = nn.utils.skip_init(nn.Linear, inputs, outputs), torch.ones(max(1, positions), inputs)
    else:
        side = max(1, round(positions**0.5))
        groups = inputs if kind == "depthwise" else groups if inputs % groups == outputs % groups == 0 else 1
        outputs = inputs if kind == "depthwise" else outputs
        module = nn.utils.skip_init(
            nn.Conv2d, inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        x = torch.ones(1, inputs, side, side)
    nn.init.ones_(module.weight)
    return lambda: module(x)


def _elementwise_runner(key):
    what, elements, elements_in, inputs, outputs = key
    x = torch.ones(1, inputs, max(1, elements_in))
    if "Norm" in what:
        ones = torch.ones(inputs)
        return lambda: torch.nn.functional.batch_norm(x, ones, ones, ones, ones)
    if elements < elements_in:  # pooling
        return lambda: x.mean(2)
    return lambda: x + x if "add" in what else torch.relu(x)


def _time(run) -> float:
    """Median milliseconds of a call."""
    times = []
    with torch.inference_mode(), one_thread():
        for _ in range(3):
            run()
        end = time.perf_counter() + 0.005
        while time.perf_counter() < end or len(times) < 5:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3
