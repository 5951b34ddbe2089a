"""A student fine-tuned as `compress-env finetune` does it, with a seed of its own: comparisons on test images are made of these."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compress_env.contexts import one_thread
from compress_env.data.dataset import Split
from compress_env.distill.finetune import finetune, loss_function
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import Diverged, channels_last, predict
from compress_env.files import remove
from compress_env.problem import Problem
from compress_env.spec import FinetuneSpec


@dataclass(frozen=True)
class Trained:
    """A student's main metric on the whole validation and test splits.

    Attributes:
        validation_start: On validation images, right after the surgery.
        test_start: On test images, likewise.
        validation: On validation images, of the best epoch.
        test: On test images, of the same epoch.
        best_epoch: Which one.
        history: On validation images, before training and after each epoch.
        seconds: Of an epoch with its look at the validation images: those that the processor worked, or of the clock where a GPU
            computes. 0 if the training was interrupted.
    """

    validation_start: float
    test_start: float
    validation: float
    test: float
    best_epoch: int
    history: tuple[float, ...]
    seconds: float


def metric(problem: Problem, model: nn.Module, split: Split) -> float:
    """A network's main metric on all examples of a split."""
    with one_thread(), channels_last(model):
        return problem.task.metrics(predict(model, problem.data, split), split.labels)[problem.task.metric]


def recipe_of(problem: Problem, how: FinetuneSpec) -> Recipe:
    """The recipe of every full distillation here."""
    images, loss = len(problem.data.few(how.examples).train), loss_function(problem.task, how.loss)
    return finetuning_recipe(images, how.epochs, problem.device, how.lr, how.batch_size, loss)


def train(
    problem: Problem, student: nn.Module, how: FinetuneSpec, seed: int, checkpoint: Path, progress: bool = True
) -> Trained:
    """Distil the teacher into a student, in place, on the problem's device.

    Args:
        problem: It has the teacher and the data.
        student: A fresh student.
        how: How it is trained, in one cycle.
        seed: Of the order of the images and their augmentation.
        checkpoint: File from which an interrupted training goes on.
        progress: Whether to show how far it is.

    Raises:
        Diverged: If the loss stops being finite.
    """
    student = student.to(problem.device)
    clock, fresh = time.process_time if problem.device.type == "cpu" else time.perf_counter, not checkpoint.exists()
    began = clock()
    start = metric(problem, student, problem.data.test)
    tested = clock() - began
    began = clock()
    done = finetune(
        student, problem.whole, problem.data.few(how.examples), recipe_of(problem, how), problem.task, loss=how.loss, seed=seed,
        checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    if done.diverged:
        raise Diverged(done.diverged)
    seconds = (clock() - began - tested) / done.epochs if fresh else 0.0  # the test images are looked at in the end again
    remove(checkpoint)
    return Trained(
        done.history[0], start, done.best_validation, done.metric_test, done.best_epoch, done.history, round(seconds, 2)
    )
