"""Where a student will run: PyTorch eager, `torch.compile` or ONNX Runtime, at a batch size and a number of threads."""

from __future__ import annotations

import copy
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress_env.contexts import quiet, threads
from compress_env.errors import UserError
from compress_env.extras import ONNX, need
from compress_env.registry import unknown
from compress_env.spec import RUNTIMES

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class RuntimeConfig:
    """What will run a student, and so what it is measured with.

    Attributes:
        runtime: A name in `RUNTIMES`.
        batch: Inputs at once.
        threads: Of the CPU.
        device: A torch device.
    """

    runtime: str = "eager"
    batch: int = 1
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise UserError(f"latency: {unknown('runtime', self.runtime, list(RUNTIMES))}")
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"latency: {name} has to be a whole number of at least 1, got {value!r}")
        if self.runtime == "onnxruntime":
            need("latency in ONNX Runtime", *ONNX)
        if self.runtime == "onnxruntime" and not self.on_cpu:
            import onnxruntime

            if self.provider not in onnxruntime.get_available_providers():
                raise UserError(f"latency: this ONNX Runtime has no {self.provider} for the device {self.device!r}; install "
                                "onnxruntime-gpu, or measure with eager or compile, or on the cpu")  # fmt: skip

    @classmethod
    def of(cls, given: Mapping[str, Any] | RuntimeConfig | None, device: str = "cpu") -> RuntimeConfig:
        """From `{"runtime": "onnxruntime", "batch": 1, "threads": 1}`, what is absent as in the class. Raises UserError."""
        if isinstance(given, RuntimeConfig):
            return given
        given = {"device": "cpu" if device == "auto" else str(device)} | dict(given or {})
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise UserError(f"latency: {unknown('setting', name, known)}")
        return cls(**given)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the processor."""
        return torch.device(self.device).type == "cpu"

    @property
    def provider(self) -> str:
        """ONNX Runtime's word for the device."""
        return "CPUExecutionProvider" if self.on_cpu else f"{torch.device(self.device).type.upper()}ExecutionProvider"

    @property
    def label(self) -> str:
        """For tables: "batch 1, ONNX Runtime, 1 thread"."""
        where = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.on_cpu else self.device
        return f"batch {self.batch}, {RUNTIMES[self.runtime]}, {where}"

    def as_dict(self) -> dict[str, Any]:
        """All fields, as JSON holds them."""
        return asdict(self)

    def inputs(self, example: Tensor) -> Tensor:
        """The first example `batch` times, on the device."""
        first = example[:1].to(self.device)
        return first.repeat(self.batch, *[1] * (first.dim() - 1))

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds. With one CPU thread, those that the thread computed: as on a machine that has nothing else to do."""
        alone = self.on_cpu and self.threads == 1 and time.get_clock_info("thread_time").resolution < 1e-6
        return time.thread_time if alone else time.perf_counter

    def finish(self) -> None:
        """Wait for what was started on a device that works by itself."""
        if not self.on_cpu:
            torch.accelerator.synchronize(torch.device(self.device))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Without gradients and with this many torch threads; as before afterwards."""
        with torch.inference_mode(), threads(self.threads):
            yield


def prepare(module: nn.Module, example: Tensor, runtime: RuntimeConfig) -> Callable[[], Any]:
    """A function that runs `module` once on `batch` examples in the runtime. The module is not changed; call it within `active`.

    Raises UserError if the runtime cannot take the network.
    """
    inputs = runtime.inputs(example)
    if runtime.runtime == "onnxruntime":
        session = _session(module, inputs, runtime)
        name, array = session.get_inputs()[0].name, inputs.cpu().numpy()
        return lambda: session.run(None, {name: array})[0]
    module = on_device(module, runtime)
    if runtime.runtime == "compile":
        compiled = torch.compile(copy.deepcopy(module), dynamic=False)
        try:
            with runtime.active(), quiet("torch"):
                compiled(inputs)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises is the reason
            raise UserError(f"torch.compile cannot run this network: {_reason(error)}; measure with eager") from error
        return lambda: compiled(inputs)
    return lambda: module(inputs)


def on_device(module: Module, runtime: RuntimeConfig) -> Module:
    """The module itself if it is where it is to run, otherwise a copy there."""
    device = torch.device(runtime.device)
    if all(p.device.type == device.type for p in module.parameters()):
        return module
    return copy.deepcopy(module).to(device)


def node_times(module: fx.GraphModule, example: Tensor, runtime: RuntimeConfig, seconds: float) -> dict[str, float]:
    """Median milliseconds of each node of a traced network, in its place in a whole pass of PyTorch eager."""
    module, inputs = on_device(module, runtime), runtime.inputs(example)
    runner = _Nodes(module, runtime)
    with runtime.active():
        runner.run(inputs)
        runner.times.clear()
        end, runs = time.perf_counter() + seconds, 0
        while time.perf_counter() < end or runs < 5:
            runner.run(inputs)
            runs += 1
    return {name: float(np.median(times)) * 1e3 for name, times in runner.times.items()}


class _Nodes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, runtime: RuntimeConfig):
        super().__init__(module)
        self.times: dict[str, list[float]] = {}
        self.runtime, self.clock = runtime, runtime.clock

    def run_node(self, node: fx.Node) -> Any:
        start = self.clock()
        result = super().run_node(node)
        self.runtime.finish()
        self.times.setdefault(node.name, []).append(self.clock() - start)
        return result


@dataclass(frozen=True)
class Kernel:
    """A node that ONNX Runtime ran, after its fusions. macs: of the whole batch, 0 for what is no layer or matrix product."""

    macs: int
    milliseconds: float


def kernel_times(module: nn.Module, example: Tensor, runtime: RuntimeConfig, seconds: float) -> list[Kernel]:
    """Each node of the optimised network in ONNX Runtime with its median time, from its own profiler."""
    inputs = runtime.inputs(example)
    with tempfile.TemporaryDirectory() as folder:
        session = _session(module, inputs, runtime, profile=str(Path(folder) / "profile"))
        name, array = session.get_inputs()[0].name, inputs.cpu().numpy()
        end, runs = time.perf_counter() + seconds, 0
        while (time.perf_counter() < end or runs < 5) and runs < 300:  # the profiler keeps a million events at most
            session.run(None, {name: array})
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[tuple, list] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault((event["args"]["node_index"], event["name"]), []).append(event)
    return [Kernel(_macs(own[0]["args"]), float(np.median([e["dur"] for e in own])) / 1e3) for own in found.values()]


def _macs(event: Mapping[str, Any]) -> int:
    """Multiply-accumulates of a profiled node, from its shapes."""
    shapes = [next(iter(s.values())) for s in event.get("input_type_shape", []) if s]
    outputs = [next(iter(s.values())) for s in event.get("output_type_shape", []) if s]
    if len(shapes) < 2 or not outputs:
        return 0
    if event["op_name"] in ("Conv", "FusedConv"):
        return int(np.prod(outputs[0])) * int(np.prod(shapes[1][1:]))
    if "MatMul" in event["op_name"] or "Gemm" in event["op_name"]:
        return int(np.prod(outputs[0])) * int(shapes[0][-1])
    return 0


def _session(module: nn.Module, inputs: Tensor, runtime: RuntimeConfig, profile: str | None = None) -> Any:
    """An ONNX Runtime session of the module for inputs of this shape."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = runtime.threads, 1
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(_onnx(module, inputs.cpu()), options, providers=[runtime.provider])


def _onnx(module: nn.Module, inputs: Tensor) -> bytes:
    """The module as ONNX for this batch size.

    ONNX Runtime makes the same of the quick converter's file and of the exported one (`compress_env.export`), which takes ten times as
    long to write and is the way out for what the quick one cannot express.
    """
    module = module if all(p.device.type == "cpu" for p in module.parameters()) else copy.deepcopy(module).cpu()
    with quiet("torch.onnx", "onnxscript", "onnx_ir"):
        try:
            file: Any = io.BytesIO()  # its annotation knows names only
            torch.onnx.export(module, (inputs,), file, dynamo=False)
            return file.getvalue()
        except Exception:  # noqa: BLE001 - a converter raises anything; what the other one raises is told
            try:
                program = torch.export.export(module, (inputs,))
                exported: Any = torch.onnx.export(program, (), dynamo=True, verbose=False)
                return exported.model_proto.SerializeToString()
            except Exception as error:  # noqa: BLE001
                raise UserError(f"ONNX cannot express this network: {_reason(error)}; measure with eager") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
