"""What whoever uses a student has to know: written into `student.onnx` and `result.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress_env.data import Data
from compress_env.problem import Problem
from compress_env.surgery.plan import Plan
from compress_env.tasks import Task


def metadata(problem: Problem, plan: Plan, limits: Mapping[str, float]) -> dict[str, Any]:
    """What a student takes and gives, and what it was made of and for, as plain values.

    Args:
        problem: Its problem; the data is loaded.
        plan: Its plan.
        limits: Its limits, by resource in its unit.

    Returns:
        As `described`, with the budget and the plan's key.
    """
    data = problem.data
    outputs = data.outputs if data.labelled else _outputs(problem)
    found = described(problem.teacher.name, data, problem.input_shape, outputs)
    return found | {"budget": {name: float(limit) for name, limit in limits.items()}, "plan": plan.key}


def described(teacher: str, data: Data, input_shape: Sequence[int], outputs: int) -> dict[str, Any]:
    """What a network takes and gives, as plain values.

    Args:
        teacher: Name of its teacher.
        data: What it was trained on.
        input_shape: Of one input.
        outputs: How many it has.

    Returns:
        `input_shape` of one input; `mean` and `std` a channel, of pixels in [0, 1], absent where inputs are taken as they are;
        `class_names`, absent where they are not known; `outputs`, `teacher` and `data`.
    """
    file, colon, attribute = teacher.rpartition(":")
    found: dict[str, Any] = {
        "teacher": f"{Path(file).name}:{attribute}" if colon else teacher,  # not where it lies on this machine
        "data": data.name, "input_shape": list(input_shape), "outputs": outputs,
    }  # fmt: skip
    if data.normalization and data.train.inputs.dtype == torch.uint8:
        found["mean"], found["std"] = (list(map(float, values)) for values in data.normalization)
    if data.class_names:
        found["class_names"] = list(data.class_names)
    return found


def _outputs(problem: Problem) -> int:
    """The number of outputs of the teacher, which data without labels do not tell."""
    graph = problem.graph
    return int(next(n for n in graph.fx_graph.nodes if n.name == graph.output).meta["shape"][1])


def uneven(task: Task, data: Data) -> dict[int, int]:
    """How many test examples there are of each class, by its number; nothing where all have as many, or the task has no classes."""
    labels = data.test.labels
    if not hasattr(task, "by_class") or labels.dim() != 1:
        return {}
    numbers, counts = labels.unique(return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist())) if len(counts.unique()) > 1 else {}


def by_class(task: Task, data: Data, teacher: Tensor, student: Tensor) -> list[dict[str, Any]]:
    """A row a class of the test examples, where classes are not of one size, so that the mean hides the small ones.

    Args:
        task: Says how good outputs are by class.
        data: Has the test examples.
        teacher: The teacher's outputs `(n, ...)` for them.
        student: The student's.

    Returns:
        For each class of `uneven` its name, or its number, how many examples it has, and the main metric of both.
    """
    labels, counts = data.test.labels, uneven(task, data)
    if not counts:
        return []
    before, after = task.by_class(teacher, labels), task.by_class(student, labels)  # type: ignore[attr-defined]
    names = dict(enumerate(data.class_names))
    return [
        {"class": names.get(n, str(n)), "examples": count, "teacher": before[n], "student": after[n]} for n, count in counts.items()
    ]  # fmt: skip
