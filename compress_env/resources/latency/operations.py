"""What each operation of a network computes, and on how many channels: what its latency follows."""

from __future__ import annotations

import numpy as np

from compress_env.surgery.graph import PrunedView
from compress_env.surgery.ir import Channels

MULTIPLES = (16, 8, 4)
"""Numbers of channels that kernels work on at a time."""
GRADES = len(MULTIPLES) + 1
"""How many kinds of numbers of channels are told apart: multiples of each, and of none."""


class OperationCosts:
    """What the operations of a network compute, as arrays over operations.

    Attributes:
        names: Of the operations.
        computes: Mask `(ops,)` of layers and matrix products, which have MACs.
    """

    def __init__(self, view: PrunedView):
        index = view.graph.group_index
        ops = [op for op in view.ops if op.inputs and not op.view]
        self.names = [op.name for op in ops]
        self.computes = np.array([bool(op.macs) for op in ops])
        rows: dict[Channels, int] = {Channels((), 1): 0}
        terms: list[tuple[int, float, list[int]]] = []
        for i, op in enumerate(ops):
            own = [(t.factor, t.axes) for t in op.macs]
            own = own or [(op.elements, (op.channels, *([op.across] if op.across else [])))]
            terms += [(i, factor, [rows.setdefault(axis, len(rows)) for axis in axes]) for factor, axes in own]
        self._matrix, self._fixed = np.zeros((len(rows), len(index))), np.array([c.fixed for c in rows], float)
        for i, channels in enumerate(rows):
            for name, repeats in channels.parts:
                self._matrix[i, index[name]] += repeats
        self._follows = self._matrix.any(1)
        self._owner = np.array([i for i, _, _ in terms], int)
        self._factor = np.array([factor for _, factor, _ in terms], float)
        self._axes = np.zeros((len(terms), max([1, *(len(axes) for _, _, axes in terms)])), int)
        for i, (_, _, axes) in enumerate(terms):
            self._axes[i, : len(axes)] = axes
        self._first = np.flatnonzero(np.diff(self._owner, prepend=-1))  # every operation has a term

    def __call__(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Work and grade of each operation, both `(ops,)`, with these widths `(groups,)`.

        Work is MACs for one example, or numbers written where there are none. The grade is 0 if all channels that follow the widths
        are multiples of 16, 1 of 8, 2 of 4, else 3.
        """
        sizes = self._matrix @ widths + self._fixed
        rough = sum((sizes % m > 0).astype(int) for m in MULTIPLES) * self._follows
        work = np.add.reduceat(self._factor * sizes[self._axes].prod(1), self._first)
        return work, np.maximum.reduceat(rough[self._axes].max(1), self._first)
