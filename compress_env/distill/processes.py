"""A training that several processes share, as `torchrun` starts them: the first decides, the others learn along."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

PATIENCE = timedelta(days=1)
"""For the others, while the first judges finalists and writes files. A process that dies ends all of them at once all the same."""


def rank() -> int:
    """The number of this process, 0 if it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def started() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


@contextmanager
def together() -> Iterator[None]:
    """Within the block, processes that a launcher has started know each other, and have a GPU each where there are GPUs."""
    if not started():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def told(text: str | None = None) -> str | None:
    """What the first process tells all of them; the others wait for it. Nothing is sent where there is one process."""
    if world() == 1:
        return text
    found = [text]
    distributed.broadcast_object_list(found, device=torch.device("cpu"))
    return found[0]


def average(model: nn.Module, loss: Tensor) -> Tensor:
    """Average the gradients of all processes in place, and their losses: what is returned is the same in each."""
    if world() == 1:
        return loss
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [loss.flatten()])
    distributed.all_reduce(flat)
    *means, mean = flat.div_(world()).split([g.numel() for g in gradients] + [1])
    for g, average_ in zip(gradients, means):
        g.copy_(average_.view_as(g))
    return mean[0]
