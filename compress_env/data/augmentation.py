"""Ways to change training images at random, by name or a user's own: `AUGMENTATIONS`, `find`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress_env.data.stored import Change, changed
from compress_env.errors import UserError
from compress_env.registry import Registry

AUGMENTATIONS = Registry("augmentation")
"""Functions from the size of images, `(height, width)`, to a change of one image."""


@dataclass(frozen=True)
class Augmentation:
    """A change of images, one at a time.

    Attributes:
        name: For results and reports.
        change: From pixels `(channels, height, width)` uint8 to others of the same shape and type; it draws Python's, NumPy's or
            torch's random numbers, which are seeded for each image.
    """

    name: str
    change: Change

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The batch with each of its images changed, on its device. Raises UserError if the change is none of images."""
        seeds = torch.randint(2**62, (len(inputs),), generator=generator).tolist()
        return torch.stack([changed(self.change, x, seed) for x, seed in zip(inputs.cpu(), seeds)]).to(inputs.device)


@AUGMENTATIONS.register("resized-crop")
def resized_crop(size: tuple[int, int]) -> Change:
    """A part of 35 to 100 % of the area, resized to the whole, and mirrored every other time: for photos."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), v2.RandomHorizontalFlip()])


@AUGMENTATIONS.register("trivial")
def trivial(size: tuple[int, int]) -> Change:
    """TrivialAugment (Mueller & Hutter, ICCV 2021) on a resized crop."""
    from torchvision.transforms import v2

    return v2.Compose([resized_crop(size), v2.TrivialAugmentWide()])


def function(spec: Any) -> Callable[..., Any]:
    """What a name, a place or a callable stands for, before any data is loaded: by a name, it makes the change for a size.

    Raises:
        UserError: If there is no such name, or it is nothing to call.
    """
    change: Callable[..., Any] = AUGMENTATIONS.get(spec) if isinstance(spec, str) else spec
    if not callable(change) or isinstance(change, type):
        known = ", ".join(AUGMENTATIONS.names())
        raise UserError(f"the augmentation {spec!r} is no function of an image; give a name ({known}) or a callable")
    return change


def find(spec: Any, shape: tuple[int, ...]) -> Augmentation:
    """The augmentation of a name, a place `module:function` or `file.py:function`, or a callable, for inputs of this shape.

    Raises:
        UserError: If there is no such name, or it is nothing to call.
    """
    change = function(spec)
    if isinstance(spec, str) and spec in AUGMENTATIONS.names():
        if len(shape) != 3:
            raise UserError(f"the augmentation {spec!r} is for images, and the inputs are of shape {shape}")
        return Augmentation(spec, change((shape[1], shape[2])))
    return Augmentation(spec if isinstance(spec, str) else getattr(change, "__name__", repr(change)), change)
