"""What a network's outputs mean: how good they are, how far they are from the teacher's, and how to learn these: `load_task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from compress_env.data.dataset import Data
from compress_env.errors import UserError
from compress_env.registry import Registry
from compress_env.tasks.classification import Classification

TASKS = Registry("task")
TASKS.register("classification")(Classification())


class Task(Protocol):
    """The meaning of outputs; everything else takes them as tensors `(n, ...)`, one row an example, float32 on the CPU.

    A task that is to be used on data without labels has a further method `answers(outputs) -> labels`. One whose main metric is the
    share of right answers may have `right(outputs, labels) -> (n,)` of bool, for closer bounds on differences (`tasks.paired`).

    Attributes:
        metric: Name of the main metric, such as "accuracy".
        losses: What a student can be trained to match, by name: functions `(student_outputs, teacher_outputs, labels, temperature)
            -> loss`, a scalar, differentiable in the student's outputs, on any device.
        loss: Name of the loss that a student is distilled with if none is asked for.
    """

    metric: str
    losses: Registry
    loss: str

    def metrics(self, outputs: Tensor, labels: Tensor) -> Mapping[str, float]:
        """How good the outputs are.

        Args:
            outputs: Outputs `(n, ...)`.
            labels: The data's labels `(n, ...)` of the same examples.

        Returns:
            Metrics by name, the main one first; higher is better, and 1 is perfect: rewards and reports take it for a share.
        """
        ...

    def divergence(self, student: Tensor, teacher: Tensor) -> float:
        """KL(teacher || student) of what the outputs `(n, ...)` predict, in nats, averaged over examples; 0 where they agree."""
        ...

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Share of examples that student and teacher give the same answer for, in [0, 1]."""
        ...

    def check(self, outputs: Tensor, data: Data, teacher: str) -> None:
        """Look before any long work whether the outputs `(n, ...)` of the teacher of this name suit the data.

        Raises:
            UserError: If they do not; the message names teacher and data.
        """
        ...


MEMBERS = ("metric", "losses", "loss", "metrics", "divergence", "agreement", "check")
"""Everything that a task has."""


def load_task(spec: Any) -> Task:
    """A task by its name, as `module:attribute` or `path/to/file.py:attribute`, or as an object; a class is called without arguments.

    Args:
        spec: A name of `TASKS`, a place, or the task itself.

    Raises:
        UserError: If there is no such task, or it lacks something that `Task` has.
    """
    task = TASKS.get(spec) if isinstance(spec, str) else spec
    if isinstance(task, type):
        task = task()
    missing = [name for name in MEMBERS if not hasattr(task, name)]
    if missing:
        raise UserError(f"the task {spec!r} lacks {', '.join(missing)}; see compress_env.tasks.Task")
    return task


__all__ = ["TASKS", "Task", "load_task"]
