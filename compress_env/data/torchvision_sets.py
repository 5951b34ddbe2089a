"""CIFAR-10 (Krizhevsky 2009) and Fashion-MNIST (Xiao et al. 2017) through torchvision, which downloads them once."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from compress_env.data.dataset import Data, Normalization, Split, make_data
from compress_env.data.label_names import label_names
from compress_env.errors import UserError


def cifar10(normalization: Normalization | None = None) -> Data:
    """CIFAR-10: 32x32 RGB, ten kinds, 50,000 training and 10,000 test images."""
    return _load("CIFAR10", "cifar10", normalization, flip=True)


def fashion_mnist(normalization: Normalization | None = None) -> Data:
    """Fashion-MNIST: 28x28 grey, ten kinds, 60,000 training and 10,000 test images."""
    return _load("FashionMNIST", "fashion-mnist", normalization, flip=True)


def _load(kind: str, name: str, normalization: Normalization | None, flip: bool) -> Data:
    import torchvision.datasets

    root = Path(os.environ.get("COMPRESS_ENV_DATA", "~/.cache/compress_env")).expanduser()
    try:
        parts = [getattr(torchvision.datasets, kind)(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name}: torchvision could not download it to {root} ({error}); put its files there, "
            "or point COMPRESS_ENV_DATA at a folder that has them"
        ) from error
    splits = []
    for part in parts:
        pixels = torch.as_tensor(part.data)
        pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
        splits.append(Split(pixels.contiguous(), torch.as_tensor(part.targets)))
    return make_data(
        name, *splits, outputs=10, normalization=normalization, crop_padding=4, flip=flip,
        class_names=label_names(parts[0]),
    )  # fmt: skip
