"""`Stored`: inputs that stay where they are, on disk or in a user's data set, and are read when they are asked for."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress_env.contexts import seeded
from compress_env.errors import UserError

IN_MEMORY = 1 << 30
"""Bytes up to which a data set is held in memory."""
MOST_WORKERS, FEW = 8, 64
"""Processes that read, one a core; inputs up to which this one reads them itself."""

Rows = Tensor | slice
Change = Callable[[Tensor], Tensor]


class Stored:
    """Inputs `(n, ...)` uint8 or float32 that are read one by one; indexing gives tensors.

    Args:
        read: From the number of an input to the input, an array. It may be called in other processes.
        rows: The numbers of the inputs, in their order.
        shape: Of one input.
        dtype: Of inputs.
    """

    def __init__(self, read: Callable[[int], np.ndarray], rows: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8):
        self.read, self.rows, self.dtype = read, rows, dtype
        self.shape = (len(rows), *shape)

    @classmethod
    def of(cls, inputs: Tensor) -> Stored:
        """Inputs in memory, as if they were not."""
        return cls(lambda i: inputs[i].numpy(), np.arange(len(inputs)), tuple(inputs.shape[1:]), inputs.dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def is_floating_point(self) -> bool:
        """Whether inputs are floats."""
        return self.dtype.is_floating_point

    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, rows: Rows) -> Tensor:
        """The inputs at these places."""
        own = self.at(rows)
        batches = [own.rows[i : i + FEW] for i in range(0, len(own), FEW)]
        parts = list(loaded(self.read, [[(int(i), 0) for i in batch] for batch in batches], None))
        return torch.cat(parts) if parts else torch.empty(0, *self.shape[1:], dtype=self.dtype)

    def at(self, rows: Rows) -> Stored:
        """The same for the inputs at these places, none of which is read."""
        picked = self.rows[rows] if isinstance(rows, slice) else self.rows[np.asarray(rows)]
        return Stored(self.read, picked, self.shape[1:], self.dtype)


class _Inputs(Dataset):
    """Inputs, each changed as its seed says; an error is an input, too, lest it comes back wrapped in another process's traceback."""

    def __init__(self, read: Callable[[int], np.ndarray], change: Change | None):
        self.read, self.change = read, change

    def __getitem__(self, item: tuple[int, int]) -> np.ndarray | Exception:
        row, seed = item
        try:
            found = self.read(row)
            return found if self.change is None else changed(self.change, torch.from_numpy(np.array(found)), seed).numpy()
        except Exception as error:  # noqa: BLE001 - it is raised again in the process that asked
            return error


def _stack(items: Sequence[Any]) -> np.ndarray | Exception:
    failed = next((item for item in items if isinstance(item, Exception)), None)
    return np.stack(items) if failed is None else failed


def loaded(
    read: Callable[[int], np.ndarray], batches: Sequence[Sequence[tuple[int, int]]], change: Change | None
) -> Iterator[Tensor]:
    """Batches of inputs, read ahead by as many processes as there are cores.

    Args:
        read: From the number of an input to the input.
        batches: Numbers, each with a seed for `change`.
        change: Augments an input; nothing is changed if None.

    Yields:
        A tensor `(n, ...)` for each batch, always the same, however many processes there are.
    """
    many = sum(map(len, batches)) > FEW
    loader: DataLoader = DataLoader(
        _Inputs(read, change), batch_sampler=batches, num_workers=workers() if many else 0, collate_fn=_stack,  # type: ignore[arg-type]
        multiprocessing_context="fork" if many and workers() else None,
    )  # fmt: skip
    for found in loader:
        if isinstance(found, Exception):
            raise found if isinstance(found, UserError) else UserError(f"an input cannot be read: {type(found).__name__}: {found}")
        yield torch.from_numpy(found)


def workers() -> int:
    """How many processes read; none where new processes do not begin as copies of this one, which what is read may need."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def changed(change: Change, example: Tensor, seed: int) -> Tensor:
    """An input as `change` makes it with this seed of Python's, NumPy's and torch's random numbers.

    Raises:
        UserError: If that is no tensor of the same shape and type.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with seeded(seed):  # of no GPU, which another process must not touch
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            found = torch.as_tensor(change(example))
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            raise UserError(f"the augmentation raises {type(error).__name__}: {error}") from error
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
    if found.shape != example.shape or found.dtype != example.dtype:
        raise UserError(
            f"the augmentation makes {tuple(found.shape)} {found.dtype} of {tuple(example.shape)} {example.dtype}; it has to give the "
            "same: end it with a resize, and leave pixels as they are"
        )
    return found
