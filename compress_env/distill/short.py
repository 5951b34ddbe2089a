"""A few steps of distillation, the same ones for every student: how fast it learns says more than how far surgery has left it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.contexts import seeded
from compress_env.data.dataset import Data
from compress_env.devices import mixed_precision
from compress_env.distill.train import Diverged, predict
from compress_env.surgery.layout import in_layout
from compress_env.surgery.refit import renormalise
from compress_env.surgery.rules import rule_of

WARMUP = 3
"""Steps over which the rate rises: Adam's first steps are as large as its rate, whatever the gradient."""


class ShortDistillation:
    """Batches of augmented training images with the teacher's outputs, made once; calling it trains a student on them.

    Args:
        teacher: The network to match, in evaluation mode.
        data: Whose training images are used.
        inputs: Calibration images on the students' device, on which normalisation statistics are taken anew at the end: running
            averages lag behind the weights.
        at_once: How many of them to run at once, for which there is memory.
        steps: Number of batches.
        batch_size: Images a batch.
        lr: Adam's rate.
        loss: Of the task: `(student_outputs, teacher_outputs, labels, temperature) -> loss`.
        temperature: For the loss.
        bfloat16: Mixed precision.
        answers: From the teacher's outputs to the labels that they stand for, where the data have none.
    """

    def __init__(
        self, teacher: fx.GraphModule, data: Data, inputs: Tensor, at_once: int, *, steps: int, batch_size: int, lr: float,
        loss: Callable[..., Tensor], temperature: float, bfloat16: bool, answers: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        rows = torch.arange(steps * batch_size) % len(data.train)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.cat([data.augment(data.train.inputs[r], generator) for r in rows.split(batch_size)])
        self.labels = data.train.labels[rows]
        views = type(data.train)(self.images, self.labels)
        self.outputs = predict(teacher, data, views, at_once, bfloat16=bfloat16)
        self.parts = inputs.split(at_once)
        if answers:
            self.labels = answers(self.outputs)
        self.data, self.inputs, self.lr, self.bfloat16 = data, inputs, lr, bfloat16
        self.steps, self.batch_size, self.loss, self.temperature = steps, batch_size, loss, temperature

    def __call__(self, student: fx.GraphModule) -> None:
        """Train `student` in place with Adam; it ends in evaluation mode.

        Raises:
            Diverged: If the loss stops being finite.
        """
        device = self.inputs.device
        optimizer = torch.optim.Adam(student.parameters(), lr=self.lr, betas=(0.9, 0.99))
        student.train()
        with seeded(0, device):  # dropout
            self._steps(student, optimizer, device)
        self._normalise(student)

    def _steps(self, student: fx.GraphModule, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        for step, rows in enumerate(torch.arange(len(self.labels)).split(self.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * min(1.0, (step + 1) / WARMUP)
            raw = self.images[rows]
            x = in_layout(student, self.data.prepare(raw).to(device))
            with mixed_precision(device, self.bfloat16):
                outputs = student(x)
            targets = self.outputs[rows].to(device), self.labels[rows].to(device)
            loss = self.loss(outputs.float(), *targets, self.temperature)
            if not torch.isfinite(loss):
                raise Diverged(f"the loss is {loss.item()} at step {step + 1} of {self.steps}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def _normalise(self, student: fx.GraphModule) -> None:
        """Statistics of the student's own activations on the calibration images."""
        student.eval()
        if len(self.parts) > 1:
            with torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
                renormalise(student, self.parts)
            return
        norms: list[Any] = [m for m in student.modules() if rule_of(m).keeps_statistics(m)]
        if not norms:
            return
        before = [m.momentum for m in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        with torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
            student(self.inputs)
        for norm, momentum in zip(norms, before):
            norm.momentum = momentum
        student.eval()


def reinitialise(student: nn.Module) -> None:
    """Give every layer the weights at random that it was made with before any training, in place; they are the same each time.

    Bare parameters, which no layer knows how to begin, stay as they are.
    """
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    with seeded():
        for module in student.cpu().modules():
            for name in ("reset_parameters", "_reset_parameters"):  # the second is that of attention
                if callable(reset := getattr(module, name, None)):
                    reset()
    student.to(device)
