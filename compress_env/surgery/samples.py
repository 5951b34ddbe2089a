"""Corresponding rows of what a dense layer reads and what it answers, at a few positions of each image."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
    )  # fmt: skip


def places(name: str, height: int, width: int, count: int) -> list[tuple[int, int]]:
    """Up to `count` output positions, always the same for a layer."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    order = torch.randperm(height * width, generator=generator)[:count].tolist()
    return [divmod(i, width) for i in order]


def sample_outputs(y: Tensor, positions: list[tuple[int, int]] | None) -> Tensor:
    """Rows `(n, outputs)` of float32: outputs at `positions` of every image, or all of them for a linear layer."""
    if positions is None:
        return y.reshape(-1, y.shape[-1]).float().clone()
    return torch.cat([y[:, :, r, c] for r, c in positions]).float()


def sample_inputs(module: nn.Module, x: Tensor, positions: list[tuple[int, int]] | None) -> Tensor:
    """Rows of inputs that belong to the rows of `sample_outputs`: for convolutions, patches laid out like the weights."""
    if positions is None:
        return x.reshape(-1, x.shape[-1]).float()
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = module.kernel_size, module.stride, module.dilation, module.padding
    x = F.pad(x, (pw, pw, ph, ph))
    patches = []
    for r, c in positions:
        top, left = r * sh, c * sw
        patches.append(x[:, :, top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw].flatten(1))
    return torch.cat(patches).float()
