"""Full distillation of a student: the training that makes what the search found as good as it can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compress_env.contexts import one_thread
from compress_env.data.dataset import Data, Split
from compress_env.distill.checkpoint import Checkpoint
from compress_env.distill.cuda_graphs import answering
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import Objective, fit, predict
from compress_env.surgery.layout import channels_last
from compress_env.tasks import Task


@dataclass(frozen=True)
class Finetuned:
    """The course of a full distillation, in the task's main metric.

    Attributes:
        epochs: Passes over the training split.
        history: Metric on validation images before training and after each epoch, so that epoch 0 is the student as it came.
        best_epoch: The epoch whose weights were kept, the last of equals.
        best_validation: Its metric on validation images.
        last_validation: The last epoch's.
        metric_test: The best epoch's metric on test images, measured once.
    """

    epochs: int
    history: tuple[float, ...]
    best_epoch: int
    best_validation: float
    last_validation: float
    metric_test: float


def finetune(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    recipe: Recipe,
    task: Task,
    *,
    loss: str | None = None,
    temperature: float = 4.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Finetuned:
    """Distil `teacher` into `student`, in place; it ends with the weights of the epoch that was best on validation images.

    The test images are looked at once, after that choice.

    Args:
        student: A network on the device of the training.
        teacher: The network to match, in evaluation mode, on the same device.
        data: What both were made for.
        recipe: How long and how fast.
        task: The meaning of the outputs.
        loss: Name of one of the task's losses, or `module:attribute`; the task's own choice if None.
        temperature: For the loss.
        seed: Of the order of the images and their augmentation.
        checkpoint: File from which an interrupted run goes on.
        progress: Whether a bar is shown.

    Raises:
        Diverged: If the loss stops being finite.
    """
    loss = task.loss if loss is None else loss
    objective = distillation(teacher, task.losses.get(loss), temperature, recipe.precision)
    made_with = {"loss": loss, "temperature": temperature, "seed": seed}
    file = Checkpoint(checkpoint, student, recipe, **made_with) if checkpoint else None
    kept = file.kept if file else {}
    history: list[float] = kept.setdefault("history", [])
    best: dict[str, torch.Tensor] = kept.setdefault("best", {})

    def measured(split: Split) -> float:
        return task.metrics(predict(student, data, split), split.labels)[task.metric]

    def on_epoch(_epoch: int) -> str:
        value = measured(data.validation)
        if value >= max(history, default=-math.inf):
            best.clear()
            best.update({k: v.detach().clone() for k, v in student.state_dict().items()})
        history.append(value)
        return f"validation {task.metric} {value:.4f}, best {max(history):.4f}"

    generator = torch.Generator().manual_seed(seed)
    with one_thread(), channels_last(teacher), channels_last(student):
        if not history:
            on_epoch(0)
        fit(student, data, recipe, objective, generator, on_epoch=on_epoch, checkpoint=file,
            progress="fine-tuning" if progress else None)  # fmt: skip
        student.load_state_dict(best)
        with channels_last(student):
            test = measured(data.test)
    if file:
        file.remove()
    return Finetuned(
        epochs=len(history) - 1,
        history=tuple(history),
        best_epoch=max(range(len(history)), key=lambda i: (history[i], i)),
        best_validation=max(history),
        last_validation=history[-1],
        metric_test=test,
    )


def distillation(
    teacher: nn.Module, loss: Callable[..., Tensor], temperature: float, precision: str
) -> Objective:
    """An objective for `fit` that asks the teacher, which is in evaluation mode, about each batch as it was augmented."""
    answer = answering(teacher, precision == "bfloat16")

    def objective(outputs: Tensor, labels: Tensor, inputs: Tensor, _rows: Tensor) -> Tensor:
        return loss(outputs, answer(inputs), labels, temperature)

    return objective
