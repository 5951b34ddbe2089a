"""Full distillation of a student: the training that makes what the search found as good as it can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compress_env.contexts import one_thread
from compress_env.data.dataset import Data
from compress_env.distill.cuda_graphs import answering
from compress_env.distill.train import Recipe, accuracy, channels_last, fit, predict
from compress_env.tasks.classification.losses import LOSSES


@dataclass(frozen=True)
class Finetuned:
    """history: validation accuracy before training and after each epoch, so that epoch 0 is the student as it came.

    accuracy_test: that of the best epoch, measured once.
    """

    epochs: int
    history: tuple[float, ...]
    best_epoch: int
    best_validation: float
    last_validation: float
    accuracy_test: float


def finetune(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    loss: str = "hinton",
    temperature: float = 4.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Finetuned:
    """Distil `teacher` into `student`, in place; it ends with the weights of the epoch that was best on validation images.

    The test images are looked at once, after that choice. With `checkpoint`, an interrupted run goes on from there.
    """
    objective = distillation(teacher, loss, temperature, recipe.precision)
    history: list[float] = []
    best: dict[str, torch.Tensor] = {}
    best_file = checkpoint and checkpoint.with_suffix(".best")
    if checkpoint and checkpoint.exists() and best_file.exists():
        kept = torch.load(best_file, weights_only=True)
        history, best = kept["history"], kept["best"]

    def on_epoch(epoch: int) -> str:
        share = accuracy(predict(student, data, data.validation), data.validation.labels)
        del history[epoch:]  # what a killed run had noted beyond its checkpoint
        if share >= max(history, default=0.0):
            best.clear()
            best.update({k: v.detach().clone() for k, v in student.state_dict().items()})
        history.append(share)
        if best_file:
            torch.save({"history": history, "best": best}, best_file)
        return f"validation {share:.4f}, best {max(history):.4f}"

    generator = torch.Generator().manual_seed(seed)
    with one_thread(), channels_last(teacher), channels_last(student):
        if not history:
            on_epoch(0)
        fit(student, data, recipe, objective, generator, on_epoch=on_epoch, checkpoint=checkpoint,
            progress="fine-tuning" if progress else None)  # fmt: skip
        student.load_state_dict(best)
        with channels_last(student):
            test = accuracy(predict(student, data, data.test), data.test.labels)
    for file in (checkpoint, best_file):
        if file:
            file.unlink(missing_ok=True)
    return Finetuned(
        epochs=len(history) - 1,
        history=tuple(history),
        best_epoch=max(range(len(history)), key=lambda i: (history[i], i)),
        best_validation=max(history),
        last_validation=history[-1],
        accuracy_test=test,
    )


def distillation(teacher: nn.Module, loss: str, temperature: float, precision: str) -> Callable:
    """An objective for `fit` that asks the teacher about each batch as it was augmented. The teacher is in evaluation mode."""
    function = LOSSES.get(loss)
    answer = answering(teacher, precision == "bfloat16")

    def objective(logits, labels, inputs, _rows):
        return function(logits, answer(inputs), labels, temperature)

    return objective
