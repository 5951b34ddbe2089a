"""What agents of earlier systems see at a step, in place of the layer embedding: AMC's eleven features, and N2N's seven."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from compress_env.problem import Problem
from compress_env.surgery.ir import Layer
from compress_env.walk.base import AnyWalk

STATES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "amc": (
        ("t", "number of the decision"),
        ("n", "channels out of the layer"),
        ("c", "channels into it"),
        ("h", "rows that it reads"),
        ("w", "columns that it reads"),
        ("stride", "its stride"),
        ("k", "its kernel's width"),
        ("FLOPs", "MACs of the layer, which AMC calls FLOPs"),
        ("reduced", "share of the teacher's MACs that decisions so far save"),
        ("rest", "share of the teacher's MACs in the layers behind it"),
        ("previous", "share of channels that the decision before left, as executed; of a block 0 or 1; 1 at first"),
    ),
    "n2n": (
        ("l", "kind of the layer: 0 linear, 1/2 another one, 1 a convolution"),
        ("k", "its kernel's width"),
        ("s", "its stride"),
        ("p", "its padding"),
        ("n", "channels out of it"),
        ("skip start", "1 if a residual connection begins at it"),
        ("skip end", "1 if one ends behind it"),
    ),
}
"""Name and meaning of each entry. What is not a share is divided by the largest value of all decisions."""
KINDS = {"linear": 0.0, "conv": 1.0, "depthwise": 1.0, "grouped": 1.0, "transposed": 1.0}


def state_bounds(state: str) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest observations `(entries,)`, float32."""
    count = len(STATES[state])
    return np.zeros(count, np.float32), np.ones(count, np.float32)


class LayerState:
    """Observations in the state of an earlier system.

    A decision is described by its first layer: of a group of tied channels the first that produces them, of a block the first in it.

    Args:
        problem: The problem.
        state: A name of `STATES`.

    Attributes:
        names: Names of the entries.
        low: Smallest values `(entries,)`, float32.
        high: Largest values `(entries,)`, float32.
    """

    def __init__(self, problem: Problem, state: str):
        self.problem = problem
        self.names = tuple(name for name, _ in STATES[state])
        self.low, self.high = state_bounds(state)
        rows = [self._known(i) for i in range(len(problem.decisions))]
        table = np.array([[row.get(name, 0.0) for name in self.names] for row in rows])
        shares = np.isin(self.names, ["l", "rest", "skip start", "skip end"])
        self._table = table / np.where(shares, 1.0, np.maximum(table.max(0), 1e-12))

    def _known(self, step: int) -> dict[str, float]:
        """What does not change over a walk, by entry; not yet divided."""
        graph = self.problem.graph
        layers = self.problem.decisions[step].layers(graph)
        layer, last = layers[0], layers[-1]
        macs = graph.view(frozenset()).layer_macs(graph.full)
        order = list(graph.layers)
        later = order[order.index(layer.name) + 1 :]
        rows, columns = self._size(layer)
        branches = [[x for x in block.layers if x in macs] for block in graph.blocks.values() if block.kind == "branch"]
        return {
            "t": float(step), "n": layer.channels_out, "c": layer.channels_in, "h": rows, "w": columns, "stride": layer.stride,
            "k": layer.kernel_size, "FLOPs": macs.get(layer.name, 0.0),
            "rest": sum(macs.get(name, 0.0) for name in later) / self.problem.cost_model.teacher["macs"],
            "l": KINDS.get(layer.kind, 0.5), "s": layer.stride, "p": self._padding(layer),
            "skip start": float(any(layer.name == own[0] for own in branches)),
            "skip end": float(any(last.name == own[-1] for own in branches)),
        }  # fmt: skip

    def _size(self, layer: Layer) -> tuple[float, float]:
        """Rows and columns that a layer reads; their ratio is that of the inputs, of which it knows the product."""
        shape = self.problem.input_shape
        if len(shape) < 3:
            return float(layer.positions_in), 1.0
        rows = round(math.sqrt(layer.positions_in * shape[-2] / shape[-1])) or 1
        return float(rows), layer.positions_in / rows

    def _padding(self, layer: Layer) -> float:
        try:
            padding = getattr(self.problem.whole.get_submodule(layer.name), "padding", 0)
        except AttributeError:  # a bare parameter
            return 0.0
        if isinstance(padding, str):
            return layer.kernel_size // 2 if padding == "same" else 0.0
        return float(padding[0] if isinstance(padding, tuple) else padding)

    def __call__(self, walk: AnyWalk, *_: object) -> np.ndarray:
        """The vector `(entries,)` float32 for the current step of `walk`; at the end, of the last one. Nothing is predicted."""
        step = min(walk.step_index, len(self.problem.decisions) - 1)
        vector = self._table[step].copy()
        if "reduced" in self.names:
            teacher = self.problem.cost_model.teacher["macs"]
            vector[self.names.index("reduced")] = 1 - walk.usage["macs"] / teacher
            vector[self.names.index("previous")] = self._left(walk)
        return np.clip(vector, 0, 1).astype(np.float32)

    def _left(self, walk: AnyWalk) -> float:
        """The share that the decision before left of its target."""
        if not walk.step_index:
            return 1.0
        before, graph = self.problem.decisions[walk.step_index - 1], self.problem.graph
        if not before.shrinks:
            return float(walk.has_block(before.target))
        return float(walk.widths[graph.group_index[before.target]]) / graph.groups[before.target].size
