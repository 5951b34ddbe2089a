"""From a run folder to production: ONNX Runtime alone, PyTorch alone, or the teacher's code.

A short search leaves `student.onnx`, `student.pt2`, `student.safetensors` and `plan.json`. You will see the accuracy on test
images of the first two, run without any of our code, and of the module rebuilt from plan and weights. Takes 15 s.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import compress_env
from compress_env.data import load_data


def with_onnx(folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits, by what a server or a phone would run; the batch may have any size."""
    return onnxruntime.InferenceSession(folder / "student.onnx").run(["logits"], {"input": inputs})[0]


def with_pt2(folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits, by PyTorch alone. Load a `.pt2` file of somebody you trust only: unlike the other formats, it is a program."""
    with torch.inference_mode():
        return torch.export.load(folder / "student.pt2").module()(torch.from_numpy(inputs)).numpy()


def with_code(folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits of the module, rebuilt from the teacher's code: to train it further, or to export it in another format."""
    student = compress_env.load_student(folder)
    with torch.inference_mode():
        return student(torch.from_numpy(inputs)).numpy()


def main():
    data = load_data("digits")
    inputs, labels = data.prepare(data.test.inputs).numpy(), data.test.labels.numpy()
    with tempfile.TemporaryDirectory() as name:
        compress_env.compress(
            budget={"macs": 0.3}, agent="random", evaluations=10, out=name, finetune_epochs=5, progress=False
        )
        folder = Path(name)
        teacher = json.loads((folder / "result.json").read_text())["teacher"]
        print(f"{'':20} {'test accuracy':>14} {'kB':>6}")
        print(f"{'teacher':20} {teacher['metric_test']:14.2%} {teacher['file_bytes'] / 1e3:6.0f}")
        students = {"student.onnx": with_onnx, "student.pt2": with_pt2, "student.safetensors": with_code}
        for file, run in students.items():
            share = (run(folder, inputs).argmax(1) == labels).mean()
            print(f"{file:20} {share:14.2%} {(folder / file).stat().st_size / 1e3:6.0f}")


if __name__ == "__main__":
    main()
