"""Torch devices: which ones this machine has, and what they are good at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress_env.errors import UserError

SMALL = 5_000_000
"""MACs of a teacher below which converting to bfloat16, or a GPU, costs more than it saves."""


def fastest() -> torch.device:
    """CUDA if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fastest_for(macs: float) -> torch.device:
    """CUDA if there is one, but the CPU for very small networks, of which a GPU waits for the next instruction most of the time."""
    return fastest() if macs >= SMALL else torch.device("cpu")


def bfloat16_pays(macs: float, device: torch.device) -> bool:
    """Whether mixed precision is faster: on processors that have it, for all but very small networks."""
    return has_bfloat16(device) and bool(macs >= SMALL)


def usable(name: str) -> torch.device:
    """The device of this name. Raises UserError if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
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
