"""A plain network for small images, after VGG (Simonyan & Zisserman, ICLR 2015) with batch normalisation and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def vgg(channels_in: int, widths: Sequence[int | str], outputs: int) -> nn.Sequential:
    """3x3 convolutions, each with normalisation and ReLU, then pooling and one linear layer.

    Args:
        channels_in: Of the images.
        widths: Channels of each convolution; "M" halves the resolution.
        outputs: Of the network.
    """
    layers: list[nn.Module] = []
    before = channels_in
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))


def vgg16_cifar10() -> nn.Sequential:
    """VGG-16 at a quarter of its widths for 32x32 RGB images: 13 convolutions, 0.92 M parameters, 20 MMACs."""
    return vgg(3, (16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 128, 128, 128, "M", 128, 128, 128), outputs=10)


def vgg7_digits() -> nn.Sequential:
    """The same kind of network for 8x8 grey images of digits: 6 convolutions."""
    return vgg(1, (16, 16, "M", 32, 32, "M", 64, 64), outputs=10)
