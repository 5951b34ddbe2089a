"""How long and how fast networks are trained: `Recipe`, and the one of full distillation, `finetuning_recipe`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from compress_env import devices
from compress_env.distill import processes
from compress_env.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A training with SGD, Nesterov momentum and one cycle of the learning rate.

    Attributes:
        epochs: Passes over the training split, at least 1.
        steps: Batches after which it stops, if given.
        batch_size: Examples a batch.
        lr: Peak of the learning rate.
        warmup: Share of the steps in which the rate rises.
        momentum: Of SGD.
        weight_decay: On weights of more than one dimension only.
        precision: "float32", or "bfloat16" for mixed precision (about 1.6 times faster on CPUs that have it).
        augment: Whether images are cropped and mirrored at random, as the data say.
        accumulate: Parts of a batch that are computed one after the other, for want of memory; layers that normalise by the batch
            see a part.
    """

    epochs: int = 30
    steps: int | None = None
    batch_size: int = 128
    lr: float = 0.1
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "float32"
    augment: bool = True
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "accumulate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict. `accumulate` is left out where it is 1, as in records from before it."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("accumulate", 1)}


def finetuning_recipe(
    examples: int, epochs: int, device: torch.device, lr: float | None = None, batch_size: int | None = None,
    loss: Callable[..., Any] | None = None, accumulate: int = 1,
) -> Recipe:  # fmt: skip
    """The recipe of full distillation: batches of 128 (64 for small data sets), a short rise, then a cosine to 0.

    The peak rate grows with the root of the number of steps, from 0.02 for 350 to 0.1 at most. A refitted student starts close to its
    teacher: in one pass over CIFAR-10, a high rate loses what it has (a ResNet-20 student at a quarter of the MACs, two seeds: 54 and
    70 % at 0.05, 70 and 71 % at 0.04, 72 and 72 % at 0.015), while long trainings gain from one.

    Args:
        examples: Size of the training split.
        epochs: Passes over it.
        device: Where it is trained.
        lr: Another peak of the rate.
        batch_size: Another number of examples a batch.
        loss: What is trained with; its attribute `rate`, if it has one, is the share of that peak which it is best at.
        accumulate: Parts of a batch that are computed one after the other.

    Raises:
        UserError: If batches cannot be shared evenly by parts and processes.
    """
    small = examples < 10_000
    batch = batch_size or (64 if small else 128)
    if batch % (parts := accumulate * processes.world()):
        raise UserError(
            f"batches of {batch} examples cannot be shared by {processes.world()} process(es) in {accumulate} part(s) each; set "
            f"batch_size to a multiple of {parts}"
        )
    steps = epochs * max(1, examples // batch)
    peak = round(min(0.1, 0.02 * math.sqrt(steps / 350)), 3) * getattr(loss, "rate", 1.0)
    return Recipe(
        epochs=epochs, batch_size=batch, lr=lr or peak, weight_decay=2e-4,
        precision="float32" if small or not devices.has_bfloat16(device) else "bfloat16", accumulate=accumulate,
    )  # fmt: skip
