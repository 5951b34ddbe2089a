"""Torch devices: which ones this machine has, and what they are good at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

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


@contextmanager
def mixed_precision(device: torch.device, enabled: bool) -> Iterator[None]:
    """Within the block, networks that learn are computed in bfloat16, if that is enabled, where it is faster.

    On a CPU, the gradients of a depthwise convolution with a stride, or with a kernel larger than 3, take 4 to 17 times as long in
    bfloat16 as in float32 (torch 2.14): such a convolution is computed in float32 there.
    """
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        if not enabled or device.type != "cpu":
            yield
            return
        with _SlowInBfloat16():
            yield


class _SlowInBfloat16(TorchFunctionMode):
    """Computes in float32 what is slow otherwise; its result is in bfloat16, like that of the other convolutions."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _conv2d(*args, **(kwargs or {})) if func is conv2d else func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    strided = max(stride) > 1 if isinstance(stride, Sequence) else stride > 1
    if groups == 1 or weight.shape[1] > 1 or not (strided or max(weight.shape[2:]) > 3):
        return conv2d(input, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):
        whole = bias.float() if bias is not None else None
        return conv2d(input.float(), weight.float(), whole, stride, padding, dilation, groups).bfloat16()
