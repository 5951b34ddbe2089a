"""Transposed convolutions, whose weights run over inputs first: `(in, out of a group, ...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Geometry, Positions, first
from compress_env.surgery.rules.cutting import Indices, cut
from compress_env.surgery.rules.dense import Convolution, by_groups
from compress_env.surgery.rules.registry import register_rule


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class TransposedConvolution(Convolution):
    """In groups, they lose whole groups, or the same channels of every group, as other convolutions do."""

    def geometry(self, module: nn.Module, channels: int) -> Geometry:
        """A kind of its own: no layer behind it takes its input in place of its output."""
        return replace(super().geometry(module, channels), kind="transposed")

    def tie(
        self, flow: ChannelFlow, name: str, module: nn.Module, numbers: np.ndarray | None, out: np.ndarray
    ) -> None:
        """As other convolutions; whole groups go only with their inputs."""
        if numbers is None and by_groups(module):
            flow.ties.fix(out, f"{name} has an input of fixed size")
        super().tie(flow, name, module, numbers, out)

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """Where whole groups go, the weight runs over inputs alone."""
        if name == "weight":
            return ("in",) if by_groups(module) else ("in", "out")
        return super().axes(module, name, value)

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """In groups, the weight has the outputs of one group only."""
        m: Any = module
        if m.groups == 1:
            return super().sliced(module, indices)
        sizes = dict(self.sizes(module, {side: len(index) for side, index in indices.items()}))
        if by_groups(module):
            sizes["groups"] = len(indices["in"]) * m.groups // m.in_channels if "in" in indices else m.groups
            return cut(module, lambda name, value: self.axes(module, name, value), indices, sizes)
        within = dict(indices)
        if "out" in indices:
            within["of a group"] = indices["out"][: len(indices["out"]) // m.groups]  # those of the first are those of all

        def axes(name: str, value: Tensor) -> tuple[str | None, ...]:
            return ("in", "of a group") if name == "weight" else self.axes(module, name, value)

        return cut(module, axes, within, sizes, self.reads)

    def scores(self, module: nn.Module, side: str) -> np.ndarray | None:
        """Weights of those in groups are laid out by inputs."""
        groups: Any = module.groups
        if side == "in":
            weight: Any = module.weight
            return weight.detach().square().flatten(1).sum(1).double().cpu().numpy()
        return None if groups > 1 else super().scores(module, side)

    def inside(self, module: nn.Module) -> bool:
        """They are not followed there."""
        return False

    def fitted(self, module: nn.Module) -> Any:
        """The weights laid out like those of other convolutions, if it is a plain one of images."""
        m: Any = module
        plain = isinstance(module, nn.ConvTranspose2d) and module.groups == 1
        return SimpleNamespace(weight=m.weight.transpose(0, 1), bias=m.bias) if plain else None

    def formula(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """A transposed convolution's of images."""
        m: Any = module
        return F.conv_transpose2d(x, m.weight, m.bias, m.stride, m.padding, m.output_padding, 1, m.dilation)

    def weight(self, module: nn.Module, side: str) -> Tensor:
        """The weights `(outputs, inputs, kernel)`."""
        m: Any = module
        return m.weight.transpose(0, 1).flatten(2)

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """The inputs that each weight is multiplied with for an output, 0 where there are none."""
        m: Any = module
        x = first(args, kwargs)
        patches = []
        for place in positions or ():
            patch = x.new_zeros(len(x), x.shape[1], *m.kernel_size)
            for weight in np.ndindex(*m.kernel_size):
                source = [place[d] + m.padding[d] - weight[d] * m.dilation[d] for d in range(2)]
                row, column = (n // m.stride[d] for d, n in enumerate(source))
                if not any(n % m.stride[d] for d, n in enumerate(source)) and 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                    patch[:, :, weight[0], weight[1]] = x[:, :, row, column]
            patches.append(patch.flatten(1))
        return torch.cat(patches).float()
