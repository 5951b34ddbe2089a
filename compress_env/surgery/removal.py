"""Which regions can be removed whole, read off the graph: residual branches, same-shape layers, and layers of a chain."""

from __future__ import annotations

import operator
import os.path
from collections.abc import Iterable

import torch
from torch import fx, nn

from compress_env.surgery.graph import Channels, Group, Layer, Op, Unit
from compress_env.surgery.width import CONVOLUTIONS, DENSE, NORMS

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
PASSING_FUNCTIONS = (torch.relu, torch.flatten, nn.functional.relu, nn.functional.dropout, "relu", "relu_", "flatten")
ACTIVATIONS = tuple(
    getattr(nn, n) for n in nn.modules.activation.__all__ if n not in ("MultiheadAttention", "PReLU", "Softmax", "GLU")
)
POOLS = tuple(getattr(nn, n) for n in nn.modules.pooling.__all__ if "Unpool" not in n)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


def find_units(
    graph: fx.Graph,
    ops: dict[str, Op],
    layers: dict[str, Layer],
    groups: dict[str, Group],
    modules: dict[str, nn.Module],
) -> tuple[dict[str, Unit], dict[str, str]]:
    """Units in the order of computation, and the layers that could not be one with the reason."""
    nodes = {n.name: n for n in graph.nodes}
    output = next(n for n in graph.nodes if n.op == "output").args[0]
    units: list[Unit] = []
    inside: set[str] = set()
    for node in graph.nodes:
        branch = _branch(node, graph, output, layers)
        if branch:
            shortcut, vanished = branch
            units.append(Unit(_name(vanished, units), "branch", node.name, shortcut.name, vanished))
            inside.update(vanished)
    left_alone = {}
    for node in graph.nodes:
        layer = layers.get(node.target) if node.op == "call_module" else None
        if layer is None or layer.kind not in ("conv", "linear") or layer.name in inside:
            continue
        unit, reason = _chain(node, layer, ops, layers, groups, modules)
        if unit:
            units.append(unit)
        else:
            left_alone[layer.name] = reason
    position = {name: i for i, name in enumerate(nodes)}
    first = {u.name: min(position[n.name] for n in graph.nodes if n.target in u.layers) for u in units}
    return {u.name: u for u in sorted(units, key=lambda u: first[u.name])}, left_alone


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


def _branch(node: fx.Node, graph: fx.Graph, output: fx.Node, layers) -> tuple[fx.Node, tuple[str, ...]] | None:
    """For an addition of two tensors of one shape: the operand that stays, and the layers that vanish with the other."""
    if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
        return None
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    if len(operands) != 2 or any(_shape(a) != _shape(node) for a in operands):
        return None
    needed = {n.target for n in ancestors(output) if n.op == "call_module"}
    best = None
    for kept in operands:
        after = {n.target for n in ancestors(output, {node: kept}) if n.op == "call_module"}
        vanished = tuple(name for name in layers if name in needed and name not in after)
        weight = sum(layers[name].kind != "norm" for name in vanished)
        if weight and (best is None or weight > best[0]):
            best = (weight, kept, vanished)
    return best and best[1:]


def _chain(node, layer, ops, layers, groups, modules) -> tuple[Unit | None, str | None]:
    """The unit of a layer with the normalisation and activation behind it, or the reason why it has to stay."""
    source = node.all_input_nodes[0]
    last, vanished = node, [layer.name]
    while len(last.users) == 1:
        user = next(iter(last.users))
        module = modules.get(user.target) if user.op == "call_module" else None
        if isinstance(module, NORMS):
            vanished.append(user.target)
        elif (
            not isinstance(module, ACTIVATIONS + DROPOUTS)
            and user.target not in PASSING_FUNCTIONS[:1] + PASSING_FUNCTIONS[2:-1]
        ):
            break
        last = user
    if len(layer.outputs.parts) != 1 or layer.outputs.fixed:
        return None, "its output channels are fixed"
    group = groups[layer.outputs.parts[0][0]]
    producers = {m.layer for m in group.members if m.side == "out"} - set(vanished)
    same = _shape(source) == _shape(last)
    if any(not isinstance(modules[p], NORMS) for p in producers):
        return None, "its output is tied to other layers"
    if _places(source, modules[layer.name]) != _places(last, modules[layer.name]):
        return None, "it changes the resolution"
    before = ops[source.name].channels
    if not _plain(before):
        return None, "its input joins several groups of channels"
    if same:
        return Unit(layer.name, "same-shape", last.name, source.name, tuple(vanished), group.name, before), None
    if producers:
        return None, "a normalisation behind it has its number of channels"
    consumers = [m.layer for m in group.members if m.side == "in" and m.layer not in vanished]
    if not consumers or any(layers[c].kind not in ("conv", "linear") for c in consumers):
        return None, "the layers behind it cannot be repaired to take its input"
    if not _reaches_only(last, set(consumers), modules):
        return None, "what is computed behind it needs its number of channels"
    return Unit(layer.name, "chain", last.name, source.name, tuple(vanished), group.name, before, fold=layer.name), None


def _plain(channels: Channels) -> bool:
    return (len(channels.parts) == 1 and not channels.fixed and channels.parts[0][1] == 1) or not channels.parts


def _places(node: fx.Node, layer: nn.Module) -> tuple[int, ...]:
    shape = _shape(node)
    return shape[2:] if isinstance(layer, CONVOLUTIONS) else shape[1:-1]


def _reaches_only(node: fx.Node, consumers: set[str], modules) -> bool:
    """Whether every path from `node` meets one of `consumers` before anything that mixes tensors or looks at channels."""
    for user in node.users:
        if user.op == "call_module" and user.target in consumers:
            continue
        module = modules.get(user.target) if user.op == "call_module" else None
        passing = isinstance(module, ACTIVATIONS + POOLS + DROPOUTS + (nn.Flatten, nn.Identity))
        if not (passing or user.target in PASSING_FUNCTIONS) or isinstance(module, DENSE):
            return False
        if not _reaches_only(user, consumers, modules):
            return False
    return bool(node.users)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return node.meta["shape"]


def _name(layers: Iterable[str], taken: list[Unit]) -> str:
    """The module that holds all `layers`, or the first of them if another unit has that name."""
    layers = list(layers)
    prefix = os.path.commonprefix([f"{name}." for name in layers])
    name = prefix[: prefix.rfind(".")] if "." in prefix else layers[0]
    return layers[0] if not name or any(u.name == name for u in taken) else name
