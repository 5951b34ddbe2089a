"""Questions about paths through a traced network: which layers go with a tensor, and who reads it."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from compress_env.surgery.ir import Channels, Layer
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.elementwise import PASSING

ADDITIONS = (operator.add, torch.add, "add")
LIGHT = ("norm", "parameter")
"""Kinds of layers that are no reason to remove anything."""


def vanished_layers(node: fx.Node, kept: fx.Node, output: fx.Node, layers: dict[str, Layer]) -> tuple[str, ...]:
    """The layers that nothing needs any more once users of `node` take `kept` instead."""
    left = [n for n in ancestors(output, {node: kept}) if n.op in ("call_module", "get_attr")]
    after = {n.target for n in left}.union(*(n.meta["shared"] for n in left))
    return tuple(name for name in layers if name not in after)


def enclosing(layer: str) -> list[str]:
    """The names of the modules that hold a layer, the innermost first."""
    parts = layer.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def rank(node: fx.Node) -> int:
    """The number of axes of a node's result."""
    return len(shape_of(node))


def ancestors(output: fx.Node, instead: dict[fx.Node, fx.Node] | None = None) -> set[fx.Node]:
    """Nodes that `output` needs, when users of a key of `instead` take its value in place of it."""
    instead = instead or {}
    seen: set[fx.Node] = set()
    todo = [output]
    while todo:
        node = todo.pop()
        while node in instead:
            node = instead[node]
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return seen


def branch_of(node: fx.Node, output: fx.Node, layers: dict[str, Layer]) -> tuple[fx.Node, tuple[str, ...]] | None:
    """For an addition of two tensors of one shape: the operand that stays, and the layers that vanish with the other."""
    if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
        return None
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    if len(operands) != 2 or any(shape_of(a) != shape_of(node) for a in operands):
        return None
    best = None
    for kept in operands:
        if not any(n.op == "placeholder" for n in ancestors(kept)):
            continue  # the rest would not depend on the input any more
        vanished = vanished_layers(node, kept, output, layers)
        weight = sum(layers[name].kind not in LIGHT for name in vanished)
        if weight and (best is None or weight > best[0]):
            best = (weight, kept, vanished)
    return best and best[1:]


def is_plain(channels: Channels) -> bool:
    """Whether an axis runs over the channels of one group, each once, or over fixed ones alone."""
    return (len(channels.parts) == 1 and not channels.fixed and channels.parts[0][1] == 1) or not channels.parts


def places(node: fx.Node, axis: int) -> tuple[int, ...]:
    """The lengths of the axes that run over places in an example."""
    shape = shape_of(node)
    return tuple(n for d, n in enumerate(shape) if d not in (0, axis % len(shape)))


def reaches_only(node: fx.Node, consumers: set[str], modules: dict[str, nn.Module]) -> bool:
    """Whether every path from `node` meets one of `consumers` before anything that mixes tensors or looks at channels."""
    for user in node.users:
        if user.op == "call_module" and user.target in consumers:
            continue
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if not (rule_of(module).passes or user.target in PASSING):
            return False
        if not reaches_only(user, consumers, modules):
            return False
    return bool(node.users)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's result."""
    return node.meta["shape"]
