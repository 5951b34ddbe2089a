"""Students as files: a plan and safetensors that rebuild them from the teacher's code, and ONNX that needs none of ours."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import StudentPlan
from compress_env.teachers import load_weights

TOLERANCE = 1e-4


class ExportMismatch(RuntimeError):
    """The exported network does not compute what the PyTorch one does."""


def save_student(student: nn.Module, plan: StudentPlan, folder: Path) -> Path:
    """Write `plan.json` and `student.safetensors`; returns the latter."""
    (folder / "plan.json").write_text(plan.to_json() + "\n")
    path = folder / "student.safetensors"
    save_file({k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}, path)
    return path


def load_student(teacher: nn.Module, graph: LayerGraph, folder: Path) -> nn.Module:
    """The student of `save_student`, rebuilt from the teacher's code. Runs no pickled code. Raises UserError if a file is wrong."""
    student = build_student(teacher, graph, StudentPlan.from_json((folder / "plan.json").read_text()))
    load_weights(student, folder / "student.safetensors")
    return student


def export_onnx(student: nn.Module, example: Tensor, path: Path) -> float:
    """Write `student` as ONNX with a free batch size, run it in ONNX Runtime and return the largest difference to PyTorch.

    Compared on `example` `(batch, ...)` and on its first input alone. Raises ExportMismatch if outputs differ by more than 1e-4
    of the largest output.
    """
    import onnxruntime

    student = student.cpu().eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
        levels = [log.level for log in noisy]
        for log in noisy:
            log.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                student, (example[:2],), str(path), dynamo=True, external_data=False, verbose=False,
                input_names=["input"], output_names=["logits"], dynamic_shapes=({0: batch},),
            )  # fmt: skip
        finally:
            for log, level in zip(noisy, levels):
                log.setLevel(level)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for inputs in (example, example[:1]):
        with torch.inference_mode():
            expected = student(inputs).numpy()
        found = session.run(None, {"input": inputs.numpy()})[0]
        worst = max(worst, float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
    if not worst <= TOLERANCE:
        raise ExportMismatch(
            f"{path}: outputs of ONNX Runtime differ from PyTorch's by {worst:.2g}, more than {TOLERANCE}"
        )
    return worst
