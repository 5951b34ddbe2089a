"""MobileNetV2 (Sandler et al., CVPR 2018) for small images: inverted residuals, and half of the resolution three times."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Stage = tuple[int, int, int, int]
"""Expansion, channels, blocks and stride."""

STAGES: tuple[Stage, ...] = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""As in the paper's table 2 but for the strides before 32x32."""


def _normalised(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
    ]


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without a nonlinearity; a shortcut where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_normalised(channels_in, hidden, 1), nn.ReLU6()]
        layers += [*_normalised(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *_normalised(hidden, channels_out, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Of images `(n, channels, height, width)`."""
        y = self.layers(x)
        return x + y if self.residual else y


def mobilenetv2(
    channels_in: int, width: float, outputs: int, stages: Sequence[Stage] = STAGES, features: int = 1280
) -> nn.Sequential:
    """width: of every layer, as a share of the paper's. features: of the last convolution, in the paper's widths."""

    def scaled(channels: int) -> int:
        return max(8, int(channels * width + 4) // 8 * 8)

    before = scaled(32)
    layers: list[nn.Module] = [*_normalised(channels_in, before, 3), nn.ReLU6()]
    for expansion, channels, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(before, scaled(channels), stride if block == 0 else 1, expansion))
            before = scaled(channels)
    last = scaled(features)
    layers += [
        *_normalised(before, last, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, outputs),
    ]
    return nn.Sequential(*layers)


def mobilenetv2_cifar10() -> nn.Sequential:
    """MobileNetV2 at half of its widths for 32x32 RGB images: 0.59 M parameters, 26 MMACs."""
    return mobilenetv2(3, 0.5, outputs=10)


def mobilenetv2_digits() -> nn.Sequential:
    """The first four stages, at half of their widths, for 8x8 grey images of digits."""
    return mobilenetv2(1, 0.5, outputs=10, stages=STAGES[:4], features=256)
