"""Students as files: plan and safetensors, which the teacher's code rebuilds, and ONNX and torch.export, which need no code of ours.

None of the files holds pickled code: the plan is JSON, safetensors and ONNX are plain data, and `student.pt2` is written without
the pickle that `torch.export.save` puts into it. Still, `torch.export.load` runs what a file tells it to; a `.pt2` file, unlike
the others, should only be loaded if it comes from somebody you trust.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, fx, nn

from compress_env.contexts import quiet
from compress_env.errors import UserError
from compress_env.extras import ONNX, MissingPackage, Skipped, need
from compress_env.files import atomic, system_error, write_text
from compress_env.progress import announced
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.teachers import load_weights

TOLERANCE = 1e-4


class ExportFailed(UserError):
    """The student cannot be written in a format, or the file does not compute what the student does; there is no file then."""


def save_student(student: nn.Module, plan: Plan, folder: Path) -> Path:
    """Write `plan.json` and `student.safetensors`; returns the latter."""
    write_text(folder / "plan.json", plan.to_json() + "\n")
    return save_weights(student, folder)


def save_weights(student: nn.Module, folder: Path) -> Path:
    """Write `student.safetensors`, and return its path."""
    path = folder / "student.safetensors"
    with atomic(path) as part:
        part.write_bytes(_safetensors(student))
    return path


def state_bytes(module: nn.Module) -> int:
    """Bytes of a network's weights and buffers as a safetensors file."""
    return len(_safetensors(module))


def rebuild_student(teacher: nn.Module, graph: LayerGraph, folder: Path) -> fx.GraphModule:
    """The student of `save_student`, rebuilt from the teacher's code. Runs no pickled code. Raises UserError if a file is wrong."""
    path = folder / "plan.json"
    try:
        plan = Plan.from_json(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the plan {path}: {error}; `compress-env finetune` writes it") from error
    student = build_student(teacher, graph, plan)
    load_weights(student, folder / "student.safetensors")
    return student


def export_onnx(student: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any] | None = None) -> float:
    """Write `student` as ONNX with a free batch size, run the file in ONNX Runtime and return how much its outputs differ.

    The largest difference to PyTorch's outputs, as a share of the largest output, on `example` `(batch, ...)` and on its first
    input alone. `metadata` is kept in the file, by name, as texts or JSON. Raises ExportFailed if it is over 1e-4 or the format
    cannot express the network; what was at `path` then stays.
    """
    need("an ONNX file", *ONNX)
    import onnxruntime

    with atomic(path) as part, _explained(path):
        program = _program(student, example)
        with quiet("torch.onnx", "onnxscript", "onnx_ir"):
            torch.onnx.export(
                program, (), str(part), dynamo=True, external_data=False, verbose=False,
                input_names=["input"], output_names=["logits"], dynamic_shapes=({0: "batch"},),
            )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if metadata:
            _describe(part, metadata)
        session = onnxruntime.InferenceSession(str(part), options, providers=["CPUExecutionProvider"])
        return _difference(
            student, lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), example, path
        )


def _describe(file: Path, metadata: Mapping[str, Any]) -> None:
    """Put metadata into an ONNX file: texts as they are, other values as JSON."""
    import onnx

    model = onnx.load(file)
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, file)


def export_pt2(student: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any] | None = None) -> float:
    """Write `student` for `torch.export.load(path).module()`, with a free batch size; compared and refused as by `export_onnx`.

    `metadata` is its extra file `metadata.json`. The file has neither the example's numbers nor paths of this machine in it, and
    nothing that is unpickled.
    """
    if path.suffix != ".pt2":
        raise UserError(f"cannot export to {path}: torch.export.load takes files that end in .pt2 only")
    with atomic(path) as part, _explained(path):
        program = _program(student, example)
        program.example_inputs = None  # the one thing that would be pickled
        with quiet():
            archive = io.BytesIO()  # a file would be noted in the archive under its temporary name
            torch.export.save(program, archive, extra_files={"metadata.json": json.dumps(dict(metadata or {}))})
            part.write_bytes(archive.getvalue())
            loaded = torch.export.load(part).module()
        return _difference(student, loaded, example, path)


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path, Mapping[str, Any] | None], float]] = {
    "student.onnx": export_onnx,
    "student.pt2": export_pt2,
}
"""The files of a run folder that need no code of ours, and what writes them."""


def export_all(
    student: nn.Module, example: Tensor, folder: Path, *, metadata: Mapping[str, Any] | None = None, progress: bool = True
) -> dict[str, float | None]:
    """Every format into `folder`: how much outputs differ, by file name.

    A format that fails, or whose packages are not installed, gives a warning, None and no file: a student that was searched for hours
    is not lost because of it.
    """
    differences: dict[str, float | None] = {}
    for name, write in FORMATS.items():
        try:
            with announced(f"writing and checking {name}", progress):
                differences[name] = write(student, example, folder / name, metadata)
        except (ExportFailed, MissingPackage) as error:
            if isinstance(error, MissingPackage):
                warnings.warn(Skipped(f"{name} is not written: {error}, then: compress-env export --out {folder}"), stacklevel=2)
            else:
                warnings.warn(str(error), stacklevel=2)
            differences[name] = None
            (folder / name).unlink(missing_ok=True)  # an earlier student's
    return differences


def _safetensors(module: nn.Module) -> bytes:
    values = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    places = {v.untyped_storage().data_ptr(): k for k, v in values.items()}  # tied weights are written under each name
    return save({k: v if places[v.untyped_storage().data_ptr()] == k else v.clone() for k, v in values.items()})


def _program(student: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The student on the CPU as a graph of PyTorch's own operators with a free batch size."""
    module = copy.deepcopy(student).cpu().eval()
    inputs = torch.zeros((2, *example.shape[1:]), dtype=example.dtype)  # a batch of one would be taken for a constant
    with quiet():
        program = torch.export.export(module, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _difference(student: nn.Module, exported: Callable[[Tensor], Tensor], example: Tensor, path: Path) -> float:
    """Largest difference on the batch and on one input, as a share of the largest output. Raises ExportFailed over 1e-4."""
    worst, module = 0.0, copy.deepcopy(student).cpu().eval()
    for inputs in (example.cpu(), example[:1].cpu()):
        with torch.inference_mode():
            expected, found = module(inputs), exported(inputs)
        if found.shape != expected.shape:
            raise ExportFailed(f"{path} answers with shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        largest = float(expected.abs().max()) or 1.0
        worst = max(worst, float((found - expected).abs().max()) / largest)
    if not worst <= TOLERANCE:
        raise ExportFailed(
            f"{path}: outputs differ from PyTorch's by {worst:.2g} of the largest, more than {TOLERANCE}"
        )
    return worst


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What a tracer or a converter raises, as ExportFailed with the first line of its message."""
    try:
        yield
    except (ExportFailed, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever is raised is the reason why there is no file
        if (full := system_error(error, path)) is not None:
            raise full from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith("Constraints violated (batch)"):
            reason = "the network turns the batch size into a constant, so that it works at one batch size only"
        raise ExportFailed(
            f"cannot export to {path}: {reason}; plan.json and student.safetensors still rebuild the student"
        ) from error
