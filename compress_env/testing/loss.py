"""`check_loss`: whether a student can be trained with a distillation loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compress_env.testing.require import calling, named, number, require

TEMPERATURES = (1.0, 4.0)


def check_loss(
    loss: Callable[..., Tensor], outputs: Tensor | None = None, labels: Tensor | None = None, *, name: str = ""
) -> None:
    """Check that a loss `(student_outputs, teacher_outputs, labels, temperature) -> loss` is fit for training.

    It is a finite scalar with a finite gradient in the student's outputs that is not 0, also where the outputs are certain; a small
    step against the gradient lowers it; it changes nothing that it is given.

    Args:
        loss: The loss.
        outputs: Outputs of a teacher `(n, ...)`; random ones of 16 examples, 5 each, if None.
        labels: The labels of the same examples, `(n, ...)`.
        name: How messages call it; the name of the function if "".

    Raises:
        AssertionError: Naming the loss and what is wrong.
    """
    what = named("loss", name or loss)
    if outputs is None or labels is None:
        outputs, labels = example_outputs()
    generator = torch.Generator().manual_seed(1)
    for temperature in TEMPERATURES:
        for scale in (1.0, 30.0):
            teacher = scale * outputs.float()
            student = teacher + scale * torch.randn(outputs.shape, generator=generator)
            where = f"{what} at temperature {temperature:g} of outputs up to {student.abs().max():.0f}"
            before = [x.clone() for x in (student, teacher, labels)]
            value, gradient = _gradient(where, loss, student, teacher, labels, temperature)
            require(
                all(torch.equal(x, y) for x, y in zip(before, (student, teacher, labels))),
                f"{what} changes what it is given",
            )
            require(bool(torch.isfinite(gradient).all()), f"{where} has a gradient that is not finite")
            length = gradient.norm()
            require(length > 0, f"{where} has a gradient of 0, from which nothing is learned")
            if scale == 1:
                step = student - 1e-2 * gradient / length
                lower = number(loss(step, teacher, labels, temperature), where)
                require(lower < value, f"{where} does not fall along its own gradient: {value:.6g}, then {lower:.6g}")


def example_outputs(examples: int = 16, size: int = 5) -> tuple[Tensor, Tensor]:
    """Random outputs `(examples, size)`, and labels `(examples,)` that they mostly agree with."""
    generator = torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(examples, size, generator=generator)
    labels = outputs.max(1).indices
    labels[: examples // 4] = torch.randint(size, (examples // 4,), generator=generator)
    return outputs, labels


def _gradient(
    where: str, loss: Callable[..., Any], student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[float, Tensor]:
    learned = student.clone().requires_grad_()
    with calling(where):
        found = loss(learned, teacher, labels, temperature)
    require(
        isinstance(found, Tensor) and found.dim() == 0,
        f"{where} gives {tuple(found.shape) if isinstance(found, Tensor) else found!r} instead of a scalar tensor",
    )
    value = number(found.detach(), where)
    require(found.requires_grad, f"{where} cannot be differentiated in the student's outputs")
    (gradient,) = torch.autograd.grad(found, learned)
    return value, gradient
