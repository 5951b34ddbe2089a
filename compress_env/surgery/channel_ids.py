"""Channel ids: which channels a tensor's axes run over, and which of them the network ties together.

Every channel that a layer produces gets a number, its id. A tensor carries its ids along, one tensor of ids for each of its axes
that runs over channels: of the tensor's own shape, and constant along all other axes. An operation that moves data moves ids, by
running on them itself; one that needs two channels to stay or go together unites their ids.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class Ties:
    """A union-find over channel numbers. A number may be fixed, with a reason: its channel and all tied to it have to stay."""

    def __init__(self) -> None:
        self.parent = np.zeros(0, np.int64)
        self.fixed: dict[int, str] = {}

    def fresh(self, count: int) -> np.ndarray:
        """`count` new numbers."""
        start = len(self.parent)
        self.parent = np.concatenate([self.parent, np.arange(start, start + count)])
        return np.arange(start, start + count)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The representative of each number; equal for those that are tied."""
        found = self.parent[numbers]
        while True:
            above = self.parent[found]
            if np.array_equal(above, found):
                return found
            found = above

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Tie the numbers of two equally long arrays, pair by pair."""
        a, b = self.find(np.ravel(a)), self.find(np.ravel(b))
        pairs = np.unique(np.stack([a, b], 1)[a != b], axis=0)
        for x, y in pairs.tolist():
            x, y = self._root(x), self._root(y)
            if x != y:
                low, high = min(x, y), max(x, y)
                self.parent[high] = low
                if high in self.fixed:
                    self.fixed.setdefault(low, self.fixed.pop(high))

    def _root(self, x: int) -> int:
        while self.parent[x] != x:
            x = self.parent[x] = self.parent[self.parent[x]]
        return int(x)

    def fix(self, numbers: np.ndarray, reason: str) -> None:
        """The channels with these numbers have to stay."""
        for root in np.unique(self.find(np.ravel(numbers))).tolist():
            self.fixed.setdefault(root, reason)

    def reason(self, numbers: np.ndarray) -> str | None:
        """Why one of these channels has to stay, or None if all may go."""
        return next((self.fixed[r] for r in self.find(np.ravel(numbers)).tolist() if r in self.fixed), None)

    # tensors of ids

    def varying(self, ids: Tensor) -> list[int]:
        """Axes along which the tensor of ids is not constant."""
        small = compact(ids)
        if small.numel() == 1:
            return []
        roots = self.find(small.numpy())
        return [d for d in range(roots.ndim) if roots.shape[d] > 1 and (roots != roots.take([0], d)).any()]

    def tie_along(self, ids: Tensor, axes: Iterable[int]) -> None:
        """Make the tensor of ids constant along `axes`: what they run over stays or goes as a whole."""
        small = compact(ids)
        for d in axes:
            if small.shape[d] > 1:
                self.unite(small.numpy(), np.broadcast_to(small.narrow(d, 0, 1).numpy(), small.shape))

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Tie two tensors of ids of one shape element by element."""
        a, b = compact(a), compact(b)
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        self.unite(a.numpy(), b.numpy())

    def vector(self, ids: Tensor, axis: int) -> np.ndarray:
        """The channel numbers along `axis`; everything else the tensor of ids varies along is tied."""
        self.tie_along(ids, [d for d in self.varying(ids) if d != axis % ids.dim()])
        for d in range(ids.dim()):
            if d != axis % ids.dim():
                ids = ids.narrow(d, 0, 1)
        return ids.flatten().numpy().copy()


def compact(ids: Tensor) -> Tensor:
    """The tensor of ids with axes that only repeat one value in memory cut to length 1."""
    for d, stride in enumerate(ids.stride()):
        if stride == 0 and ids.shape[d] > 1:
            ids = ids.narrow(d, 0, 1)
    return ids


def spread(numbers: np.ndarray, shape: tuple[int, ...], axis: int) -> Tensor:
    """A tensor of ids of `shape` with these numbers along `axis`."""
    view = [1] * len(shape)
    view[axis % len(shape)] = len(numbers)
    return torch.from_numpy(np.array(numbers, np.int64)).view(view).expand(shape)


def respread(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor of ids at another size of the axes along which it is constant."""
    for d, n in enumerate(shape):
        if ids.shape[d] != n:
            ids = ids.narrow(d, 0, 1)
    return ids.expand(shape)
