"""What a step of training costs in float32, in bfloat16 as PyTorch's autocast chooses it, and as trainings here do it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from time import thread_time

import torch

from benchmarks.speed.measure import rounds
from compress_env.contexts import one_thread
from compress_env.devices import has_bfloat16, mixed_precision
from compress_env.problem import Problem
from compress_env.surgery.layout import channels_last, in_layout

BATCH = 128
CPU = torch.device("cpu")


def training(problem: Problem, seconds: float, progress: bool = True) -> dict[str, float]:
    """Median CPU seconds of a forward and a backward pass of the teacher's layers for a batch of `BATCH`, by precision.

    Args:
        problem: It has the teacher.
        seconds: About how long it takes.
        progress: Whether to show how far it is.
    """
    ways: dict[str, Callable[[], AbstractContextManager]] = {"float32": nullcontext}
    if has_bfloat16(CPU):
        ways["bfloat16 by autocast"] = lambda: torch.autocast("cpu", torch.bfloat16)
        ways["mixed precision of trainings"] = lambda: mixed_precision(CPU, True)
    model = problem.student(problem.graph.canonical(frozenset(), problem.graph.full)).train().requires_grad_(True)
    few = problem.data.calibration(BATCH)
    times: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread(), channels_last(model):
        inputs = in_layout(model, few.repeat(-(-BATCH // len(few)), *[1] * (few.dim() - 1))[:BATCH])
        for _ in rounds("training steps", seconds, 3, progress):
            for name, way in ways.items():
                model.zero_grad(set_to_none=True)
                began = thread_time()
                with way():
                    outputs = model(inputs)
                outputs.float().square().mean().backward()
                times[name].append(thread_time() - began)
    return {name: median(own[1:]) for name, own in times.items()}


def lines(found: dict[str, float]) -> list[str]:
    """A line of a report for each precision."""
    return [f"a step in {n:28} {s * 1e3:9.2f} ms {s / found['float32']:7.2f} of float32" for n, s in found.items()]
