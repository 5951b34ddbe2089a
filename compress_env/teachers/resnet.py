"""Residual networks for small images (He et al. 2016, section 4.2), with 1x1 projections where the shape changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 projection where channels or resolution change."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Of images `(n, channels, height, width)`."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of `blocks` basic blocks each (the later ones halve the resolution), pooling and a classifier."""

    def __init__(self, channels_in: int, widths: Sequence[int], blocks: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            stage = []
            for j in range(blocks):
                stage.append(BasicBlock(before, width, stride=2 if i and not j else 1))
                before = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, outputs)` of images `(n, channels, height, width)`."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.flatten(self.pool(self.stages(x))))


def resnet8_digits() -> ResNet:
    """ResNet-8 for 8x8 grey images of digits: three blocks of 16, 32 and 64 channels."""
    return ResNet(1, (16, 32, 64), blocks=1, outputs=10)


def resnet20_cifar10() -> ResNet:
    """ResNet-20 for 32x32 RGB images (He et al. 2016, table 6): 0.27 M parameters, 41 MMACs."""
    return ResNet(3, (16, 32, 64), blocks=3, outputs=10)


def resnet56_cifar10() -> ResNet:
    """ResNet-56 for 32x32 RGB images (He et al. 2016, table 6): 0.86 M parameters, 126 MMACs."""
    return ResNet(3, (16, 32, 64), blocks=9, outputs=10)
