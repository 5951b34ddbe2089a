"""Numbers in the arguments of views, splits and slices that have to follow the widths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from compress_env.surgery.graph import Channels, LayerGraph, Resize


def resize(node: fx.Node, rule: Resize, size: Callable[[Channels], int], graph: LayerGraph) -> bool:
    """Write the sizes that the student has into `node`, a node of its graph. Returns whether anything had to change."""
    now = {axis: [size(c) for c in channels] for axis, channels in rule.axes}
    if now == {axis: [graph.full_size(c) for c in channels] for axis, channels in rule.axes}:
        return False
    {"sizes": _sizes, "split": _split, "slice": _slice}[rule.kind](node, now)
    return True


def _sizes(node: fx.Node, now: dict[int, list[int]]) -> None:
    """`x.view(2, 3)`, `x.view((2, 3))`, `torch.reshape(x, (2, 3))`, `x.expand(...)`, `x.unflatten(1, (2, 3))`."""
    first = 1
    start = 0
    if node.target in ("unflatten", torch.unflatten):
        first, start = 2, node.args[1]
    packed = isinstance(node.args[first], (tuple, list))
    sizes = list(node.args[first] if packed else node.args[first:])
    for axis, (n,) in now.items():
        if 0 <= axis - start < len(sizes) and sizes[axis - start] != -1:
            if axis == 0:  # it holds the batch as well
                n = -1
                if -1 in sizes:
                    raise ValueError(f"{node.name} leaves two sizes open")
            sizes[axis - start] = n
    node.args = (*node.args[:first], tuple(sizes)) if packed else (*node.args[:first], *sizes)


def _split(node: fx.Node, now: dict[int, list[int]]) -> None:
    ((dim, sizes),) = now.items()
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (node.args[0], sizes, dim), {}


def _slice(node: fx.Node, now: dict[int, list[int]]) -> None:
    x, index = node.args
    index = list(index) if isinstance(index, tuple) else [index]
    rank = node.meta["rank"]
    used = sum(i is not None and i is not Ellipsis for i in index)
    axis = 0
    for k, i in enumerate(index):
        if i is Ellipsis:
            axis += rank - used
        elif i is not None:
            if axis in now:
                before, inside = now[axis]
                index[k] = slice(before, before + inside)
            axis += 1
    node.args = (x, tuple(index))
