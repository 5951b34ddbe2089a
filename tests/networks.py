"""Small networks for tests: shipped ones, and chains of which nothing is known beforehand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from compress_env.teachers.resnet import resnet8_digits, resnet20_cifar10


def vgg(norm: bool = True, classes: int = 10) -> nn.Module:
    """A chain like VGG (Simonyan & Zisserman 2015) with layers that keep and that change channels, and linear ones."""

    def conv(a: int, b: int) -> list[nn.Module]:
        return [
            nn.Conv2d(a, b, 3, padding=1, bias=not norm),
            *([nn.BatchNorm2d(b)] if norm else []),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *conv(3, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 16), *conv(16, 16), *conv(16, 24), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes),
    )  # fmt: skip


class Functional(nn.Module):
    """Residual blocks written with functions and in-place additions, depthwise convolutions, and a module used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.point = nn.Conv2d(12, 12, 1)
        self.expand = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(20, 20, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(20, 7)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.point(self.act(self.norm(self.depthwise(x))))
        y += x
        y = self.act(self.expand(y))
        y = torch.add(y, self.mix(y))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


NETWORKS = {
    "resnet8-digits": (resnet8_digits, (1, 8, 8)),
    "resnet20-cifar10": (resnet20_cifar10, (3, 32, 32)),
    "vgg-bn": (vgg, (3, 8, 8)),
    "vgg-plain": (lambda: vgg(norm=False), (3, 8, 8)),
    "functional": (Functional, (3, 8, 8)),
}


def random_plan(graph, rng, removal: float = 0.5):
    """A plan with random units removed and random widths."""
    removed = frozenset(name for name in graph.units if rng.random() < removal)
    return graph.canonical(removed, rng.integers(graph.floor, graph.full + 1))
