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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress_env import cache
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.resources.latency.table import Table
from compress_env.surgery.graph import LayerGraph

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


def signature(graph: LayerGraph) -> str:
    """Differs where what is measured, or what a plan means, differs; weights make no difference."""
    parts = [graph.input_shape, list(graph.ops.values()), list(graph.layers.values()), str(graph.fx_graph)]
    parts += [(u.name, u.kind, u.node, u.replacement) for u in graph.blocks.values()]
    parts += [(g.name, g.size, g.step, g.floor) for g in graph.groups.values()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class LatencyCache:
    """The files of one teacher in one runtime on this device."""

    def __init__(self, graph: LayerGraph, runtime: RuntimeConfig):
        packages = ["torch", *(["onnxruntime"] if runtime.runtime == "onnxruntime" else [])]
        self.about = {
            "format": FORMAT, "device": device_name(runtime), "runtime": runtime.as_dict(), "teacher": signature(graph),
            "versions": {name: version(name) for name in packages},
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]
        where = cache.folder("latency")
        self.table_path, self.plans_path = where / f"{key}.json", where / f"{key}.plans.jsonl"

    def table(self, graph: LayerGraph, measure: Callable[[], Mapping[str, Any]]) -> Table:
        """The stored table, or what `measure` finds, which is stored."""
        try:
            return Table(graph, json.loads(self.table_path.read_text())["table"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # not measured yet, or not to be read
        data = measure()
        try:
            self.plans_path.unlink(missing_ok=True)  # they belong to a table that is gone
            self.table_path.parent.mkdir(parents=True, exist_ok=True)
            part = self.table_path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(self.about | {"table": data}) + "\n")
            part.replace(self.table_path)
        except OSError:
            pass  # a disk that is full or read-only costs the next environment a measurement
        return Table(graph, data)

    def plans(self) -> dict[str, list[float]]:
        """Milliseconds of each measurement of verified students, by the key of their plan."""
        found: dict[str, list[float]] = {}
        try:
            lines = self.plans_path.read_text().splitlines()
        except (OSError, ValueError):
            return found
        for line in lines:
            try:
                entry = json.loads(line)
                found.setdefault(str(entry["plan"]), []).append(float(entry["milliseconds"]))
            except (ValueError, LookupError, TypeError):
                continue  # torn by a crash
        return found

    def add(self, plan: str, milliseconds: float) -> None:
        """Keep a measurement of a student."""
        try:
            with self.plans_path.open("a") as file:
                file.write(json.dumps({"plan": plan, "milliseconds": milliseconds}) + "\n")
        except OSError:
            pass
