"""From a fresh student to an accuracy, as cheaply as the search needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compress_env import cache, devices
from compress_env.contexts import one_thread
from compress_env.data.dataset import Data
from compress_env.distill.short import Steps
from compress_env.distill.train import Diverged, accuracy, channels_last, memory_format, predict
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit
from compress_env.tasks.classification.losses import LOSSES

SMALL = 5_000_000
"""MACs of a teacher below which converting to bfloat16, or a GPU, costs more than it saves."""


class EvaluationFailed(RuntimeError):
    """A student that gives no accuracy; the message is the reason."""


class Score(NamedTuple):
    """Accuracy on validation images, and exp(-KL(teacher || student)) of the predictions on them, which needs no labels; in [0, 1].

    likeness: None if it is not known.
    """

    accuracy: float
    likeness: float | None


@dataclass(frozen=True)
class EvaluatorSettings:
    """How a candidate is judged.

    calibration_images: training images for the refit and for normalisation statistics. refit: least squares after the surgery.
    distill_steps: batches of batch_size augmented training images that the student is distilled on after that, the same ones for
    every student; lr: Adam's rate. validation_images: how many images the student is judged on; None takes the whole split.
    """

    calibration_images: int = 256
    refit: bool = True
    distill_steps: int = 0
    batch_size: int = 64
    lr: float = 0.001
    loss: str = "hinton"
    temperature: float = 4.0
    validation_images: int | None = 1750

    def __post_init__(self):
        LOSSES.get(self.loss)
        for name in ("calibration_images", "batch_size", "lr", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"evaluator: {name} must be positive, got {getattr(self, name)}")
        if self.distill_steps < 0:
            raise ValueError(f"evaluator: distill_steps must not be negative, got {self.distill_steps}")


class Evaluator:
    """Judges students of one teacher on one data set. The same plan gives the same accuracy on the same machine.

    teacher: the module of the empty plan, in evaluation mode. Everything that depends on the teacher alone is computed once, here.
    Larger networks are computed in bfloat16 where the processor has it.
    """

    def __init__(self, teacher: fx.GraphModule, graph: LayerGraph, data: Data, settings: EvaluatorSettings):
        self.settings, self.data = settings, data
        self.validation = data.validation_subset(settings.validation_images)
        device = next(teacher.parameters()).device
        self.bfloat16 = bfloat16_pays(graph, device)
        with one_thread(), channels_last(teacher):
            key = cache.content_key(teacher, self.validation.inputs, data.normalization, self.bfloat16, device.type)
            self.teacher_logits = cache.tensors(
                "logits", key, lambda: {"": predict(teacher, data, self.validation, bfloat16=self.bfloat16)}
            )[""]
            self.teacher_accuracy = accuracy(self.teacher_logits, self.validation.labels)
            inputs = data.calibration(settings.calibration_images).to(device)
            inputs = inputs.contiguous(memory_format=memory_format(inputs))
            self._reconstruction = Refit(teacher, graph, inputs, bfloat16=self.bfloat16)
            self._steps = settings.distill_steps and Steps(
                teacher, data, inputs, steps=settings.distill_steps, batch_size=settings.batch_size, lr=settings.lr,
                loss=settings.loss, temperature=settings.temperature, bfloat16=self.bfloat16,
            )  # fmt: skip

    def prepare(self, student: fx.GraphModule, plan: Plan) -> None:
        """Refit `student` to the teacher and distil it for a moment, in place. Raises EvaluationFailed if it diverges."""
        with _failures(), one_thread(), channels_last(student):
            if self.settings.refit:
                self._reconstruction(student, plan)
            if self._steps:
                self._steps(student)

    def logits(self, student: fx.GraphModule, plan: Plan) -> Tensor:
        """Outputs `(images, classes)` on the validation images of `student`, which is refitted in place. Raises EvaluationFailed."""
        self.prepare(student, plan)
        with _failures(), one_thread(), channels_last(student):
            logits = predict(student, self.data, self.validation, bfloat16=self.bfloat16)
        if not torch.isfinite(logits).all():
            raise EvaluationFailed("the student's outputs are not finite")
        return logits

    def __call__(self, student: fx.GraphModule, plan: Plan) -> Score:
        """The score of `student`, which is refitted in place. Raises EvaluationFailed with the reason."""
        logits = self.logits(student, plan)
        return Score(accuracy(logits, self.validation.labels), math.exp(-divergence(logits, self.teacher_logits)))


def divergence(student: Tensor, teacher: Tensor) -> float:
    """KL(teacher || student) of the predictions of logits `(n, classes)`, in nats, averaged over examples."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean").item()


@contextmanager
def _failures() -> Iterator[None]:
    """What goes wrong in computing a student, as EvaluationFailed with a one-line reason."""
    try:
        yield
    except (Diverged, ArithmeticError, MemoryError, RuntimeError) as error:
        raise EvaluationFailed(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def fastest_device(graph: LayerGraph) -> torch.device:
    """CUDA if there is one, but the CPU for very small networks, of which a GPU waits for the next instruction most of the time."""
    large = graph.view(frozenset()).macs(graph.full) >= SMALL
    return devices.fastest() if large else torch.device("cpu")


def bfloat16_pays(graph: LayerGraph, device: torch.device) -> bool:
    """Whether mixed precision is faster: on processors that have it, for all but very small networks."""
    return devices.has_bfloat16(device) and bool(graph.view(frozenset()).macs(graph.full) >= SMALL)
