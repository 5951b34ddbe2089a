"""Settings of torch, random states, warnings and logs for the length of a block; what the process had is restored."""

from __future__ import annotations

import logging
import os
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits

CPU = torch.device("cpu")
_ENVIRONMENT = threading.Lock()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """This many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """One torch thread: for small networks, two are many times slower."""
    return threads(1)


@contextmanager
def one_thread_in_children() -> Iterator[None]:
    """Processes that are started have one thread for each library that reads `OMP_NUM_THREADS`; threads take turns with it."""
    with _ENVIRONMENT:
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def own_random_state() -> Iterator[None]:
    """The global random states of Python, NumPy and torch are as before after the block, whatever a library seeds in it."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def apart() -> Iterator[None]:
    """What searching needs of the process, which is as before after the block: random states of its own, and one thread.

    That goes for torch and for the matrix products of NumPy and SciPy. These are small here: a second thread takes as much CPU time as
    the first and saves none of the clock's, and a search beside another takes twice as long.
    """
    with own_random_state(), one_thread(), threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def seeded(seed: int = 0, device: torch.device = CPU) -> Iterator[None]:
    """Torch's global random states of the CPU and of a device begin with a seed in the block, and are as before after it."""
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        for source in (torch.random.default_generator, *(torch.cuda.default_generators[i] for i in gpus)):
            source.manual_seed(seed)
        yield


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without warnings and what is less than an error in these logs: exporters and compilers speak of their own insides."""
    noisy = [logging.getLogger(name) for name in loggers]
    levels = [log.level for log in noisy]
    for log in noisy:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(noisy, levels):
            log.setLevel(level)
