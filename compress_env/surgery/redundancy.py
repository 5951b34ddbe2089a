"""How much of what a block computes is known without it: what a removal is likely to cost, before any student is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from compress_env import cache
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.samples import places

FORMAT = 1
"""To be counted up when the same inputs give other numbers: they are kept on disk."""
PLACES = 8
"""Positions of each image that are looked at, at most."""
RIDGE = 0.1
"""Share of the mean variance of an input that is added to each, as where students are refitted."""


def block_redundancy(teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor) -> dict[str, float]:
    """For each block, how much of what comes out of it is known from what takes its place: a share in [0, 1].

    It is the share of the variance that a linear map explains, fitted on one half of `inputs` `(n, ...)` and judged on the other; 0
    where resolutions differ, or channels cannot be told from positions. teacher: the module of the empty plan. Shares that took
    more than a second are kept in the user's cache folder.
    """
    blocks = {name: (block.node, block.replacement) for name, block in graph.blocks.items()}
    if not blocks:
        return {}
    key = cache.content_key(FORMAT, teacher, inputs, blocks, inputs.device.type)

    def compute() -> dict[str, Tensor]:
        with torch.no_grad():
            rows = _Rows(teacher, graph, {node for pair in blocks.values() for node in pair})
            rows.run(inputs)
            return {name: _share(*(rows.found.get(node) for node in pair)) for name, pair in blocks.items()}

    return {name: float(share) for name, share in cache.tensors("block_redundancy", key, compute).items()}


class _Rows(fx.Interpreter):
    """Notes rows `(n, channels)` of tensors at the same positions, for those whose channels are known."""

    def __init__(self, teacher: fx.GraphModule, graph: LayerGraph, wanted: set[str]) -> None:
        super().__init__(teacher)
        whole = graph.view(frozenset())
        self.channels = {name: whole.size(graph.ops[name].channels, graph.full) for name in wanted}
        self.found: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.name in self.channels and isinstance(result, Tensor):
            rows = _rows(result, self.channels[node.name])
            if rows is not None:
                self.found[node.name] = rows.float()
        return result


def _rows(y: Tensor, channels: int) -> Tensor | None:
    axis = next((axis for axis in (1, y.dim() - 1) if y.shape[axis] == channels), None)
    if axis is None:
        return None
    flat = y.movedim(axis, -1).reshape(len(y), -1, channels)
    chosen = [i for i, _ in places("", flat.shape[1], 1, PLACES)]
    return flat[:, chosen].flatten(0, 1)


def _share(y: Tensor | None, x: Tensor | None) -> Tensor:
    """The share of the variance of the second half of `y` `(n, outputs)` that a regression on `x` `(n, inputs)` explains."""
    if x is None or y is None or len(x) != len(y):
        return torch.tensor(0.0)
    half = len(x) // 2
    mean_x, mean_y = x[:half].mean(0), y[:half].mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x[:half].T @ x[:half]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    weights = torch.linalg.solve(gram, x[:half].T @ y[:half])
    rest = (y[half:] - x[half:] @ weights).square().sum()
    return (1 - rest / y[half:].square().sum().clamp_min(1e-12)).clamp(0, 1).cpu()
