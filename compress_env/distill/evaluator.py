"""From a fresh student to an accuracy, as cheaply as the search needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from compress_env.datasets.data import Data
from compress_env.distill.losses import LOSSES
from compress_env.distill.train import Diverged, Recipe, accuracy, channels_last, fit, predict
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import StudentPlan
from compress_env.surgery.reconstruct import Reconstruction
from compress_env.threads import one_thread


class EvaluationFailed(RuntimeError):
    """A student that gives no accuracy; the message is the reason."""


@dataclass(frozen=True)
class EvaluatorSettings:
    """How a candidate is judged.

    calibration_images: training images for the refit and for normalisation statistics. refit: least squares after the surgery.
    distill_steps: batches of distillation after that, on distill_images training images whose teacher logits are computed once.
    validation_images: how many images the accuracy is measured on; None takes the whole validation split.
    """

    calibration_images: int = 512
    refit: bool = True
    distill_steps: int = 0
    distill_images: int = 4096
    batch_size: int = 128
    lr: float = 0.02
    loss: str = "hinton"
    temperature: float = 4.0
    validation_images: int | None = 2500

    def __post_init__(self):
        LOSSES.get(self.loss)
        for name in ("calibration_images", "distill_images", "batch_size", "lr", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"evaluator: {name} must be positive, got {getattr(self, name)}")
        if self.distill_steps < 0:
            raise ValueError(f"evaluator: distill_steps must not be negative, got {self.distill_steps}")


class Evaluator:
    """Judges students of one teacher on one data set. The same plan gives the same accuracy on the same machine.

    teacher: the module of the empty plan, in evaluation mode. Everything that depends on the teacher alone is computed once, here.
    """

    def __init__(self, teacher: fx.GraphModule, graph: LayerGraph, data: Data, settings: EvaluatorSettings):
        self.settings, self.data = settings, data
        self.validation = data.validation_subset(settings.validation_images)
        with one_thread(), channels_last(teacher):
            self.teacher_accuracy = accuracy(predict(teacher, data, self.validation), self.validation.labels)
            device = next(teacher.parameters()).device
            inputs = data.calibration(settings.calibration_images).to(device)
            self._reconstruction = Reconstruction(teacher, graph, inputs)
            self._logits = None
            if settings.distill_steps:
                self._distill_data = data.head(settings.distill_images)
                self._logits = predict(teacher, self._distill_data, self._distill_data.train).to(device)

    def prepare(self, student: fx.GraphModule, plan: StudentPlan) -> None:
        """Refit `student` to the teacher and distil it for a moment, in place. Raises EvaluationFailed if it diverges."""
        settings = self.settings
        try:
            with one_thread():
                if settings.refit:
                    self._reconstruction(student, plan)
                if settings.distill_steps:
                    recipe = Recipe(
                        steps=settings.distill_steps, batch_size=settings.batch_size, lr=settings.lr, augment=False
                    )
                    loss = LOSSES.get(settings.loss)
                    generator = torch.Generator().manual_seed(int(plan.key, 16) % 2**63)
                    fit(
                        student,
                        self._distill_data,
                        recipe,
                        lambda logits, labels, _, rows: loss(logits, self._logits[rows], labels, settings.temperature),
                        generator,
                    )
        except (Diverged, ArithmeticError, MemoryError, RuntimeError) as error:
            raise EvaluationFailed(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error

    def __call__(self, student: fx.GraphModule, plan: StudentPlan) -> float:
        """Validation accuracy in [0, 1] of `student`, which is refitted in place. Raises EvaluationFailed with the reason."""
        self.prepare(student, plan)
        try:
            with one_thread(), channels_last(student):
                logits = predict(student, self.data, self.validation)
        except (MemoryError, RuntimeError) as error:
            raise EvaluationFailed(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        if not torch.isfinite(logits).all():
            raise EvaluationFailed("the student's outputs are not finite")
        return accuracy(logits, self.validation.labels)
