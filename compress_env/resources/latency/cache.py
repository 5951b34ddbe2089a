"""Measured latencies on disk, so that a device measures a teacher once: its table, and the students that were verified.

One pair of files for each teacher's architecture, runtime, device and version of what runs it, in the user's cache folder or
where `COMPRESS_ENV_CACHE` says. Losing them costs time only; a file that cannot be read is measured again and written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress_env import cache
from compress_env.errors import UserError
from compress_env.files import JsonLines
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.resources.latency.table import Table
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.signature import signature

FORMAT = 1


def device_name(runtime: RuntimeConfig) -> str:
    """The model of the processor that is measured."""
    if not runtime.on_cpu:
        device = torch.device(runtime.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


@dataclass(frozen=True)
class PlanTime:
    """A measurement of the student of a plan, by the plan's key."""

    plan: str
    milliseconds: float


class LatencyCache:
    """The files of one teacher in one runtime on this device."""

    def __init__(self, graph: LayerGraph, runtime: RuntimeConfig):
        packages = ["torch", *(["onnxruntime"] if runtime.runtime == "onnxruntime" else [])]
        self.about = {
            "format": FORMAT, "device": device_name(runtime), "runtime": runtime.as_dict(), "teacher": signature(graph),
            "versions": {name: version(name) for name in packages},
        }  # fmt: skip
        self._key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]
        self.plans_path = cache.folder("latency") / f"{self._key}.plans.jsonl"

    def table(self, graph: LayerGraph, measure: Callable[[], Mapping[str, Any]]) -> Table:
        """The stored table, or of the data that `measure` finds, which is stored."""

        def measured() -> dict[str, Any]:
            data = measure()
            with suppress(OSError):
                self.plans_path.unlink(missing_ok=True)  # they belong to a table that is gone
            return self.about | {"table": data}

        return cache.values("latency", self._key, measured, lambda data: Table(graph, data["table"]))

    def plans(self) -> dict[str, list[float]]:
        """Milliseconds of each measurement of verified students, by the key of their plan."""
        found: dict[str, list[float]] = {}
        try:
            for row in JsonLines(self.plans_path, PlanTime).read():
                found.setdefault(row.plan, []).append(row.milliseconds)
        except UserError:
            with suppress(OSError):  # damaged: they are measured again
                self.plans_path.unlink()
            return {}
        return found

    def add(self, plan: str, milliseconds: float) -> None:
        """Keep a measurement of a student."""
        with suppress(UserError):  # as above
            JsonLines(self.plans_path, PlanTime).append(PlanTime(plan, milliseconds))
