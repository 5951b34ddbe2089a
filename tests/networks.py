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


class Mixed(nn.Module):
    """Squeeze-and-excite, grouped and dilated convolutions, group normalisation, halves by `chunk`, a join, a channel shuffle."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Sequential(nn.GroupNorm(4, 16), nn.ReLU()))
        self.grouped = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=2)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.gate = nn.Conv2d(16, 24, 1)
        self.one, self.two = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.scale = nn.Parameter(torch.rand(20, 1, 1))
        self.norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 6)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.grouped(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        a, b = self.gate(x + y).chunk(2, dim=1)
        y = a * torch.sigmoid(b)
        y = self.norm(torch.cat([self.one(y), self.two(y)], 1) * self.scale)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(y[:, :, ::2].amax((2, 3)))


class Audio(nn.Module):
    """Convolutions over time, pooled and flattened, with a weight-sharing block and a layer normalisation."""

    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(1, 12, 9, stride=4, padding=4)
        self.shared = nn.Sequential(nn.Conv1d(12, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU(inplace=True))
        self.wide = nn.Conv1d(12, 18, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(18)
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(18 * 4, 16), nn.Hardswish(), nn.Linear(16, 5))

    def forward(self, x):
        x = self.front(x)
        x = self.shared(self.shared(x)) + x
        x = self.norm(F.gelu(self.wide(x)).transpose(1, 2)).transpose(1, 2)
        return self.out(F.adaptive_avg_pool1d(x, 4))


class Attention(nn.Module):
    """A transformer block in plain code, with a class token and positions as bare parameters."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, width, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + self.project(y.transpose(1, 2).reshape(n, tokens, width))
        x = x + self.mlp(self.between(x))
        return self.head(x[:, 0])


NETWORKS = {
    "resnet8-digits": (resnet8_digits, (1, 8, 8)),
    "resnet20-cifar10": (resnet20_cifar10, (3, 32, 32)),
    "vgg-bn": (vgg, (3, 8, 8)),
    "vgg-plain": (lambda: vgg(norm=False), (3, 8, 8)),
    "functional": (Functional, (3, 8, 8)),
    "mixed": (Mixed, (3, 8, 8)),
    "audio": (Audio, (1, 64)),
    "attention": (Attention, (3, 8, 8)),
    "mlp": (lambda: nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)), (9,)),
}


def random_plan(graph, rng, removal: float = 0.5):
    """A plan with random blocks removed and random widths."""
    removed = frozenset(name for name in graph.blocks if rng.random() < removal)
    return graph.canonical(removed, rng.integers(graph.floor, graph.full + 1))
