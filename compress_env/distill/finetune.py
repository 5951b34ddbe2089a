"""Full distillation of a student: the training that makes what the search found as good as it can be."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.contexts import one_thread
from compress_env.data.dataset import Data, Split
from compress_env.distill import processes
from compress_env.distill.checkpoint import Checkpoint, snapshot
from compress_env.distill.cuda_graphs import answering
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import AT_ONCE, Diverged, Objective, fit, predict
from compress_env.errors import UserError
from compress_env.own_code import code_id
from compress_env.records import Damaged, record, value_of
from compress_env.surgery.layout import channels_last
from compress_env.tasks import Task, agreement
from compress_env.tasks.paired import drop

TEMPERATURE = 4.0
"""Of losses that have one, unless another is given."""
SURELY = 0.995
"""Confidence with which a student as it came has to be better than each of its epochs to be kept: 95 % for the best of ten, as which a
search has chosen it (Bonferroni)."""


@dataclass(frozen=True)
class Finetuned:
    """The course of a full distillation, in the task's main metric.

    Attributes:
        epochs: Passes over the training split.
        history: Metric on validation images before training and after each epoch, so that epoch 0 is the student as it came.
        best_epoch: The epoch whose weights were kept: of those after training the best one, the last of equals; 0 only if every one
            is surely worse than the student as it came.
        best_validation: Its metric on validation images, which owes a little to that choice.
        last_validation: The last epoch's.
        metric_test: The best epoch's metric on test images, measured once.
        diverged: The reason why the training ended early, or "".
        augmentation: How training images were changed at random, in words.
        processes: How many shared the batches, at the end.
        before: Histories of the cycles before this one, if the student shrank to its plan in several.
    """

    epochs: int
    history: tuple[float, ...]
    best_epoch: int
    best_validation: float
    last_validation: float
    metric_test: float
    diverged: str = ""
    augmentation: str = ""
    processes: int = 1
    before: tuple[tuple[float, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `history` has the epoch beside each number."""
        history = [{"epoch": i, "validation": value} for i, value in enumerate(self.history)]
        return asdict(self) | {"history": history, "before": [list(each) for each in self.before]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finetuned:
        """The course of `to_json`. Raises Damaged if it is none."""
        rows = value_of(tuple[Mapping[str, float], ...], data.get("history"), "history")
        if not rows or any(row.keys() != {"epoch", "validation"} for row in rows):
            raise Damaged("'history' has no epochs")
        return record(cls, data, history=tuple(row["validation"] for row in rows))


def finetune(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    recipe: Recipe,
    task: Task,
    *,
    loss: str | Callable[..., Tensor] | None = None,
    temperature: float | None = None,
    label_weight: float | None = None,
    seed: int = 0,
    at_once: int = AT_ONCE,
    checkpoint: Path | None = None,
    progress: bool = True,
    recorded: bool = True,
) -> Finetuned:
    """Distil `teacher` into `student`, in place; it ends with the weights of the epoch that was best on validation images.

    The student as it came is no such epoch: it was often chosen among many by the same images, and so looks better on them than it
    is. It is kept, with a warning, only if it is better than every epoch by more than chance allows (`tasks.paired`).

    Of several processes (`distill.processes`), each does all of this, with its share of the batches. The test images are looked at
    once, after that choice. A training that diverges after an epoch or more ends there, with a warning.

    Args:
        student: A network on the device of the training.
        teacher: The network to match, in evaluation mode, on the same device.
        data: What both were made for.
        recipe: How long and how fast.
        task: The meaning of the outputs.
        loss: One of the task's losses, by name or `module:attribute`, or a function like them; the task's own choice if None.
        temperature: For the loss, above 0; 4 if None.
        label_weight: Of the cross-entropy with the labels in the loss, in [0, 1]; its own choice if None.
        seed: Of the order of the images and their augmentation.
        at_once: How many examples are run at once where nothing is learned.
        checkpoint: File from which an interrupted run goes on; it stays, for whoever has written what came of the training to delete.
        progress: Whether a bar is shown.
        recorded: Whether a GPU may replay recorded passes: not where a network may run other layers each time.

    Raises:
        Diverged: If the loss stops being finite within the first epoch.
        UserError: If the loss has no temperature or label weight, and one is given.
    """
    function = loss_function(task, loss, temperature, label_weight)
    labels = None if data.labelled else agreement.answers(task)
    objective = distillation(teacher, function, temperature or TEMPERATURE, recipe.precision, labels, recorded)
    made_with = {"loss": loss_name(task, loss), "seed": seed} | loss_settings(task, loss, temperature, label_weight)
    file = Checkpoint(checkpoint, student, recipe, **made_with) if checkpoint else None
    kept = file.kept if file else {}
    history: list[float] = kept.setdefault("history", [])
    best: dict[str, Tensor] = kept.setdefault("best", {})
    came: dict[str, Tensor] = kept.setdefault("came", snapshot(student))

    def truth(split: Split) -> Tensor:
        return split.labels if data.labelled else predict(teacher, data, split, at_once)

    def measured(split: Split, labels: Tensor) -> float:
        return task.metrics(predict(student, data, split, at_once), labels)[task.metric]

    def on_epoch(_epoch: int) -> str:
        value = measured(data.validation, right)
        if value >= max(history[1:], default=-math.inf):
            best.clear()
            best.update(snapshot(student))
        history.append(value)
        return f"validation {task.metric} {value:.4f}, best {max(history[1:], default=value):.4f}"

    def outputs_with(weights: Mapping[str, Tensor]) -> Tensor:
        student.load_state_dict(weights)
        with channels_last(student):
            return predict(student, data, data.validation, at_once)

    generator, diverged = torch.Generator().manual_seed(seed), ""
    with one_thread(), channels_last(teacher), channels_last(student):
        right = truth(data.validation)
        if not history:
            on_epoch(0)
        try:
            fit(student, data, recipe, objective, generator, on_epoch=on_epoch, checkpoint=file,
                progress="fine-tuning" if progress else None, recorded=recorded)  # fmt: skip
        except Diverged as error:
            if len(history) < 2:
                raise
            diverged = str(error)
            student.eval()
            warnings.warn(f"the fine-tuning ends after epoch {len(history) - 1}: {diverged}; its best epoch is kept", stacklevel=2)
        top = max(range(1, len(history)), key=lambda i: (history[i], i), default=0)
        # the drop from the best epoch to the student as it came is below 0 for sure
        if history[0] > history[top] and drop(task, outputs_with(best), outputs_with(came), right, confidence=SURELY).bound < 0:
            top, best = 0, came
            warnings.warn(
                f"the fine-tuning makes the student worse: validation {task.metric} {history[0]:.4f} before it, "
                f"{max(history[1:]):.4f} in its best epoch; the student is kept as it was before. Give a lower lr than {recipe.lr:g}",
                stacklevel=2,
            )
        student.load_state_dict(best)
        with channels_last(student):
            test = measured(data.test, truth(data.test))
    return Finetuned(
        epochs=len(history) - 1,
        history=tuple(history),
        best_epoch=top,
        best_validation=history[top],
        last_validation=history[-1],
        metric_test=test,
        augmentation=data.augmented if recipe.augment else "none",
        diverged=diverged,
        processes=processes.world(),
    )


def loss_function(
    task: Task, loss: str | Callable[..., Tensor] | None, temperature: float | None = None, label_weight: float | None = None
) -> Callable[..., Tensor]:
    """The loss of that name, the given function, or the task's own choice for None, with this label weight.

    Args:
        task: Its losses are looked in.
        loss: A name, `module:attribute` or a function.
        temperature: What it is going to be called with, if that was asked for.
        label_weight: Of the cross-entropy with the labels, if that was asked for.

    Raises:
        UserError: For an unknown name, or a setting that the loss does not have: no parameter of its function has that name.
    """
    found = loss if loss is not None and not isinstance(loss, str) else task.losses.get(loss or task.loss)
    has = _parameters(found)
    for name, value in (("temperature", temperature), ("label_weight", label_weight)):
        if value is not None and name not in has:
            raise UserError(
                f"the loss {loss_name(task, loss)!r} has no {name.replace('_', ' ')} (its function has no parameter {name}); leave "
                f"{value!r} out, or give another loss"
            )
    if label_weight is None:
        return found
    weighted = partial(found, label_weight=label_weight)
    weighted.__dict__.update(found.__dict__)
    return weighted


def loss_settings(
    task: Task, loss: str | Callable[..., Tensor] | None, temperature: float | None = None, label_weight: float | None = None
) -> dict[str, float]:
    """The temperature and the label weight that a loss has in the end, by name, for records; none of what it does not have."""
    has = _parameters(loss_function(task, loss))
    found = {"temperature": temperature or TEMPERATURE} if "temperature" in has else {}
    if "label_weight" in has:
        found["label_weight"] = has["label_weight"].default if label_weight is None else label_weight
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def _parameters(loss: Callable[..., Tensor]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(loss).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return {}


def loss_name(task: Task, loss: str | Callable[..., Tensor] | None) -> str:
    """A name for a loss, for records; of one's own with a name for its code, so that a changed one is another."""
    function = task.losses.get(loss or task.loss) if loss is None or isinstance(loss, str) else loss
    name = (loss or task.loss) if loss is None or isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__)
    code = code_id(function)
    return f"{name} ({code})" if code else name


def distillation(
    teacher: nn.Module, loss: Callable[..., Tensor], temperature: float, precision: str,
    answers: Callable[[Tensor], Tensor] | None = None, recorded: bool = True,
) -> Objective:  # fmt: skip
    """An objective for `fit` that asks the teacher, which is in evaluation mode, about each batch as it was augmented.

    answers: from its outputs to the labels that they stand for, where the data have none. recorded: as for `finetune`.
    """
    answer = answering(teacher, precision == "bfloat16", recorded)

    def objective(outputs: Tensor, labels: Tensor, inputs: Tensor, _rows: Tensor) -> Tensor:
        theirs = answer(inputs)
        return loss(outputs, theirs, answers(theirs) if answers else labels, temperature)

    return objective
