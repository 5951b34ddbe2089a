"""Numbers in the arguments of views, splits and slices that have to follow the widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from compress_env.surgery.flow import LENGTHENED, ChannelFlow
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Channels, Resize
from compress_env.surgery.rules.making import FILLED

SIZED = frozenset(("view", "reshape", "expand", "unflatten", "broadcast_to", *FILLED))
GROUPS = 6
"""The position of the groups among the arguments of a convolution."""


def resize(node: fx.Node, rule: Resize, size: Callable[[Channels], int], graph: LayerGraph) -> bool:
    """Write the sizes that the student has into `node`, a node of its graph. Returns whether anything had to change."""
    now = {axis: [size(c) for c in channels] for axis, channels in rule.axes}
    computed = (
        len(node.all_input_nodes) > 1
    )  # sizes read off another tensor, which may have shrunk when this one has not
    if not computed and now == {axis: [graph.full_size(c) for c in channels] for axis, channels in rule.axes}:
        return False
    {"sizes": _sizes, "split": _split, "slice": _slice, "groups": _groups}[rule.kind](node, now)
    return True


def find_resizes(
    flow: ChannelFlow, nodes: list[fx.Node], axes: Mapping[fx.Node, Mapping[int, np.ndarray]]
) -> dict[str, tuple[str, Mapping[int, Sequence[np.ndarray | int]]]]:
    """By node, the kind of its numbers and for each axis concerned what they depend on: channel numbers, or a size that stays."""
    found: dict[str, tuple[str, Mapping[int, Sequence[np.ndarray | int]]]] = {}
    ties = flow.ties
    widths = _widths(nodes, axes)
    for node in nodes:
        target = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node in flow.splits:
            dim, ids, sizes = flow.splits[node]
            for each in ids:
                if dim in ties.varying(each):
                    cut: Sequence[np.ndarray] = np.split(ties.vector(each, dim), np.cumsum(sizes)[:-1])
                    found[node.name] = ("split", {dim: cut})
        elif node in flow.slices:
            parts: dict[int, list[np.ndarray | int]] = {}
            for axis, ids, start, stop in flow.slices[node]:
                for each in ids:
                    if axis in ties.varying(each):
                        numbers = ties.vector(each, axis)
                        parts[axis] = [numbers[:start], numbers[start:stop]]
            if parts:
                found[node.name] = ("slice", parts)
        elif node in flow.groups:
            parts = {d: [numbers] for d, numbers in flow.axes(flow.groups[node]).items()}
            if parts:
                found[node.name] = ("groups", parts)
        elif node.op in ("call_method", "call_function") and target in SIZED:
            parts = {d: [numbers] for d, numbers in axes.get(node, {}).items()}
            start, sizes = _arguments(node)[1:3]
            for d, given in enumerate(sizes, start):
                if given in widths and d not in parts:
                    parts[d] = [node.meta["shape"][d]]
            if parts:
                found[node.name] = ("sizes", parts)
    return found


def _widths(nodes: list[fx.Node], axes: Mapping[fx.Node, Mapping[int, np.ndarray]]) -> set[fx.Node]:
    """Nodes that are computed from the length of an axis that may shrink."""
    shapes: dict[fx.Node, fx.Node] = {}
    widths: set[fx.Node] = set()
    for node in nodes:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        first: Any = node.args[0] if node.args else None
        rank = len(first.meta["shape"]) if isinstance(first, fx.Node) and first.meta.get("shape") else 0
        if (name == "getattr" and node.args[1] == "shape") or (
            name == "size" and len(node.args) + len(node.kwargs) == 1
        ):
            shapes[node] = first
        elif name == "size":
            axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            if rank and axis % rank in axes.get(first, {}):
                widths.add(node)
        elif name == "getitem" and first in shapes:
            tensor, index = shapes[first], node.args[1]
            if isinstance(index, int) and index % len(tensor.meta["shape"]) in axes.get(tensor, {}):
                widths.add(node)
        elif node.meta["shape"] is None and any(i in widths for i in node.all_input_nodes):
            widths.add(node)
    return widths


def _arguments(node: fx.Node) -> tuple[int, int, list[Any], bool]:
    """Where the sizes are in the arguments, the axis of the first of them, the sizes, and whether they are in a tuple."""
    args: tuple[Any, ...] = node.args
    first, start = (2, args[1]) if node.target in ("unflatten", torch.unflatten) else (1, 0)
    if node.target in (torch.zeros, torch.ones, torch.full):
        first = 0
    if len(args) <= first:
        return first, start, [], False
    packed = isinstance(args[first], (tuple, list))
    return first, start, list(args[first] if packed else args[first:]), packed


def _sizes(node: fx.Node, now: dict[int, list[int]]) -> None:
    """`x.view(2, 3)`, `x.view((2, 3))`, `torch.reshape(x, (2, 3))`, `x.expand(...)`, `x.unflatten(1, (2, 3))`, `torch.zeros(2, 3)`."""
    first, start, sizes, packed = _arguments(node)
    for axis, (n,) in now.items():
        if 0 <= axis - start < len(sizes) and sizes[axis - start] != -1:
            if axis == 0 and not node.meta.get(LENGTHENED):  # it holds the batch as well
                n = -1
                sizes = [now.get(d, node.meta["shape"][d : d + 1])[0] if s == -1 else s for d, s in enumerate(sizes, start)]
            sizes[axis - start] = n
    node.args = (*node.args[:first], tuple(sizes), *node.args[first + 1 :]) if packed else (*node.args[:first], *sizes)


def _groups(node: fx.Node, now: dict[int, list[int]]) -> None:
    ((n,),) = now.values()
    if len(node.args) > GROUPS:
        node.update_arg(GROUPS, n)
    else:
        node.update_kwarg("groups", n)


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
