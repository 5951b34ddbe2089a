"""Torch devices: which ones this machine has, and what they are good at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress_env.errors import UserError


def fastest() -> torch.device:
    """CUDA if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable(name: str) -> torch.device:
    """The device of this name. Raises UserError if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within the block, convolutions on CUDA give the same result each time."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
