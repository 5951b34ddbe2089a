"""One class of several: the outputs are logits `(n, classes)`, the labels are the numbers of the right classes `(n,)`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from compress_env.data.dataset import Data
from compress_env.errors import UserError
from compress_env.tasks.classification.losses import LOSSES


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of examples `(n, classes)` whose largest logit is the label's, in [0, 1]."""
    return _share(outputs.argmax(1) == labels)


class Classification:
    """The `Task` of images, or anything else, of one class each."""

    metric = "accuracy"
    losses = LOSSES
    loss = "hinton"

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """`accuracy`: share of examples whose largest logit is the label's, in [0, 1]."""
        return {"accuracy": accuracy(outputs, labels)}

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Which examples are classified right, `(n,)` of bool; their share is the accuracy."""
        return outputs.argmax(1) == labels

    def by_class(self, outputs: Tensor, labels: Tensor) -> dict[int, float]:
        """The accuracy of the examples of each class that there is, by its number."""
        right = self.right(outputs, labels)
        return {int(number): _share(right[labels == number]) for number in labels.unique()}

    def answers(self, outputs: Tensor) -> Tensor:
        """The classes `(n,)` of the largest logits: labels where data have none."""
        return outputs.argmax(1)

    def divergence(self, student: Tensor, teacher: Tensor) -> float:
        """KL(teacher || student) of the classes' probabilities, in nats, averaged over examples."""
        return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean").item()

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Share of examples whose largest logit is at the same class, in [0, 1]."""
        return _share(student.argmax(1) == teacher.argmax(1))

    def check(self, outputs: Tensor, data: Data, teacher: str) -> None:
        """Look whether the teacher gives a logit for each class of the data.

        Args:
            outputs: Its outputs `(n, ...)` for some examples.
            data: The data, labelled with whole numbers from 0.
            teacher: Its name, for the message.

        Raises:
            UserError: If it gives anything else, or the labels are no classes.
        """
        labels = data.train.labels
        if labels.dim() != 1 or labels.is_floating_point():
            kind = f"shape {tuple(labels.shape[1:])} and type {labels.dtype}" if labels.dim() > 1 else f"type {labels.dtype}"
            raise UserError(
                f"the data set {data.name!r} has labels of {kind}, for example {labels[0].tolist()}; each has to be the whole number "
                "of a class, so convert them (one-hot labels with .argmax()), or give another task for a regression"
            )
        shape = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        fits = len(shape) == 1 and (shape[0] == data.outputs or (shape[0] > data.outputs and not data.complete))
        if not fits or shape[0] < 2:
            raise UserError(
                f"the teacher {teacher!r} answers with {shape}, but the data set {data.name!r} has {data.outputs} classes; "
                f"{self._cure(outputs, data)}"
            )

    def _cure(self, outputs: Any, data: Data) -> str:
        """What to do where outputs and classes do not fit."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            return "it has to have one logit for each class, so give another task, or wrap the teacher"
        count = outputs.shape[1]
        if count < 2:
            return "a network of one output is for another task, such as a regression: give one of your own (--task)"
        if count < data.outputs:
            return f"leave out the examples whose labels are {count} and more, or give the teacher that was trained on all"
        return (
            f"if labels are the numbers of the teacher's outputs and lack some of its classes, say so with classes={count} (--classes "
            f"{count}); folders are numbered in order of their names, so that a missing one moves all behind it"
        )


def _share(right: Tensor) -> float:
    return right.double().mean().item()


__all__ = ["LOSSES", "Classification", "accuracy"]
