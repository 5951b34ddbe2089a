"""CUDA graphs: what a small network asks of a GPU is recorded once, since it computes faster than Python can ask.

Whole networks are recorded, for inputs of one shape; on other devices everything here does nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress_env.contexts import quiet

WARMUP = 3
"""Passes before a recording, in which libraries choose their algorithms."""


@contextmanager
def replayed_training(model: nn.Module, example: Tensor, bfloat16: bool) -> Iterator[None]:
    """Within the block, passes of `model` in training mode are replayed, forward and backward; inputs have the shape of `example`.

    Parameters and buffers are as before at the beginning. bfloat16: mixed precision.
    """
    if example.device.type != "cuda":
        yield
        return
    buffers = [b.detach().clone() for b in model.buffers()]
    with quiet(), uncollected(), torch.autocast("cuda", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
        torch.cuda.make_graphed_callables(model, (example,), num_warmup_iters=WARMUP, allow_unused_input=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers):
            buffer.copy_(before)
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        model.__dict__.pop("forward")  # what the recording put in the place of the module's own
        model.zero_grad(set_to_none=True)


def answering(model: nn.Module, bfloat16: bool, recorded: bool = True) -> Callable[[Tensor], Tensor]:
    """From inputs to the float32 outputs of `model`, without gradients; on CUDA a recording, if allowed, for the first shape."""
    recording: _Recording | None = None

    def answer(inputs: Tensor) -> Tensor:
        nonlocal recording
        if inputs.device.type == "cuda" and recorded and recording is None:
            recording = _Recording(model, inputs, bfloat16)
        if recording is not None and recording.inputs.shape == inputs.shape:
            return recording(inputs)
        with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16):
            return model(inputs).float()

    return answer


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in the block: a recording that is freed while another one is made spoils it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Recording:
    """A forward pass of a module, replayed on new inputs; its outputs are overwritten by the next one."""

    def __init__(self, model: nn.Module, example: Tensor, bfloat16: bool):
        self.inputs = example.clone()

        def run() -> Tensor:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
                return model(self.inputs).float()

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(self.graph):
            self.outputs = run()

    def __call__(self, inputs: Tensor) -> Tensor:
        self.inputs.copy_(inputs)
        self.graph.replay()
        return self.outputs
