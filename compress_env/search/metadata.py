"""What whoever uses a student has to know: written into `student.onnx` and `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress_env.problem import Problem
from compress_env.surgery.plan import Plan


def metadata(problem: Problem, plan: Plan, limits: Mapping[str, float]) -> dict[str, Any]:
    """What a student takes and gives, and what it was made of and for, as plain values.

    Args:
        problem: Its problem; the data is loaded.
        plan: Its plan.
        limits: Its limits, by resource in its unit.

    Returns:
        `input_shape` of one input; `mean` and `std` a channel, of pixels in [0, 1], absent where inputs are taken as they are;
        `class_names`, absent where they are not known; `outputs`, `teacher`, `data`, `budget`, and the plan's key.
    """
    data, place = problem.data, problem.teacher.name
    file, colon, attribute = place.rpartition(":")
    found: dict[str, Any] = {
        "teacher": f"{Path(file).name}:{attribute}" if colon else place,  # not where it lies on this machine
        "data": data.name, "input_shape": list(problem.input_shape), "outputs": data.outputs if data.labelled else _outputs(problem),
        "budget": {name: float(limit) for name, limit in limits.items()}, "plan": plan.key,
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


def uneven(problem: Problem) -> dict[int, int]:
    """How many test examples there are of each class, by its number; nothing where all have as many, or the task has no classes."""
    labels = problem.data.test.labels
    if not hasattr(problem.task, "by_class") or labels.dim() != 1:
        return {}
    numbers, counts = labels.unique(return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist())) if len(counts.unique()) > 1 else {}


def by_class(problem: Problem, teacher: Tensor, student: Tensor) -> list[dict[str, Any]]:
    """A row a class of the test examples, where classes are not of one size, so that the mean hides the small ones.

    Args:
        problem: Its task says how good outputs are by class.
        teacher: The teacher's outputs `(n, ...)` for the test examples.
        student: The student's.

    Returns:
        For each class of `uneven` its name, or its number, how many examples it has, and the main metric of both.
    """
    labels, task, counts = problem.data.test.labels, problem.task, uneven(problem)
    if not counts:
        return []
    before, after = task.by_class(teacher, labels), task.by_class(student, labels)  # type: ignore[attr-defined]
    names = dict(enumerate(problem.data.class_names))
    return [
        {"class": names.get(n, str(n)), "examples": count, "teacher": before[n], "student": after[n]} for n, count in counts.items()
    ]  # fmt: skip
