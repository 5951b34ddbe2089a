"""`Agreement`: a task on examples without labels, in which students are measured by how often they answer as the teacher does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from compress_env.data.dataset import Data
from compress_env.errors import UserError
from compress_env.tasks import Task


class Agreement:
    """Another task without its labels. Where that takes labels, the teacher's outputs for the same examples are given.

    Args:
        task: What outputs mean.
        name: The task's, for messages.

    Raises:
        UserError: If the task does not say which labels outputs stand for, which its losses take.
    """

    metric = "agreement"

    def __init__(self, task: Task, name: str):
        if not hasattr(task, "answers"):
            raise UserError(f"the task {name!r} needs labels, and the data have none; give it a method answers(outputs), the labels "
                            "that outputs stand for, or give data with labels")  # fmt: skip
        self.task, self.losses, self.loss = task, task.losses, task.loss
        self.divergence, self.agreement = task.divergence, task.agreement

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """`agreement`: the share of examples with the teacher's answer, whose outputs are `labels` `(n, ...)`."""
        return {self.metric: self.agreement(outputs, labels)}

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Which examples have the teacher's answer, whose outputs are `labels` `(n, ...)`: `(n,)` of bool."""
        return (self.answers(outputs) == self.answers(labels)).reshape(len(outputs), -1).all(1)

    def answers(self, outputs: Tensor) -> Tensor:
        """The labels `(n, ...)` that outputs stand for."""
        return answers(self.task)(outputs)

    def check(self, outputs: Tensor, data: Data, teacher: str) -> None:
        """Look whether there are outputs to choose between. Raises UserError that names teacher and data."""
        if outputs.dim() < 2 or outputs.shape[1] < 2:
            raise UserError(
                f"the teacher {teacher!r} answers the images {data.name!r} with {tuple(outputs.shape[1:])}, of which there is nothing "
                "to agree on; it has to have one logit for each class"
            )


def answers(task: Task) -> Callable[[Tensor], Tensor]:
    """From outputs to the labels that they stand for, of a task that can do without labels."""
    found: Callable[[Tensor], Tensor] = task.answers  # type: ignore[attr-defined]
    return found


def on(task: Task, name: str, data: Data) -> Task:
    """The task as these data can be measured in it."""
    return task if data.labelled or isinstance(task, Agreement) else Agreement(task, name)
