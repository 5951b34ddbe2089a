"""A user's network of two layers on 64 images, which fails as it is told to: for tests of what a search survives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch
from torch import fx, nn

from compress_env.data import Data, Split

FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
"""The fault that is on, under "now"; it is given the outputs of each forward."""


class OwnError(Exception):
    """As a network's author may raise."""


def fault(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A fault by name, as a function of a forward's outputs."""

    def fails(outputs: torch.Tensor) -> torch.Tensor:
        if name == "exception":
            raise OwnError("no such layer\nand a second line")
        if name == "assertion":
            raise AssertionError
        if name == "memory":
            raise MemoryError
        if name == "runtime":
            raise RuntimeError
        if name == "cuda memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if name == "cpu memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried")
        if name == "hang":
            time.sleep(600)
        if name == "busy":
            while True:
                try:
                    time.sleep(0.01)
                except Exception:  # noqa: BLE001, PERF203 - as much code that catches everything
                    pass
        if name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "interrupt":
            raise KeyboardInterrupt
        return outputs * float("nan")

    return fails


@fx.wrap
def faulty(outputs: torch.Tensor) -> torch.Tensor:
    """The outputs, or the fault that is on."""
    return FAULTS["now"](outputs) if "now" in FAULTS else outputs


class Small(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.mix = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(n, 2)`."""
        x = torch.relu(self.conv(x))
        x = torch.relu(self.mix(x))
        return faulty(self.head(x.mean((2, 3))))


def small() -> nn.Module:
    """The network, the same each time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval()


def images() -> Data:
    """64 images of 8 pixels for training, 32 for validation, 16 for tests, of two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 2
        return Split(torch.randn(count, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1), labels)

    return Data("small", split(64), split(32), split(16), 2)
