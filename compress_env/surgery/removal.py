"""Which regions can be removed whole, read off the graph: residual branches, regions that keep the shape, layers of a chain."""

from __future__ import annotations

import operator
import os.path

import networkx as nx
import numpy as np
import torch
from torch import fx, nn

from compress_env.surgery.grouping import Grouping
from compress_env.surgery.ir import Block, Channels, Layer, Source
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.elementwise import PASSING, RECTIFIERS

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
LIGHT = ("norm", "parameter")
"""Kinds of layers that are no reason to remove anything."""


class Finder:
    """Finds the blocks of a traced network.

    axes: for each node its axes that run over channels, as numbers. left_alone: layers that cannot be removed, with the reason.
    """

    def __init__(
        self,
        nodes: list[fx.Node],
        output: fx.Node,
        layers: dict[str, Layer],
        modules: dict[str, nn.Module],
        grouping: Grouping,
        axes: dict[fx.Node, dict[int, np.ndarray]],
    ) -> None:
        self.nodes, self.output, self.layers, self.modules = nodes, output, layers, modules
        self.grouping, self.axes = grouping, axes
        self.left_alone: dict[str, str] = {}
        self.position = {n.name: i for i, n in enumerate(nodes)}
        self.producers: dict[int, set[str]] = {}
        for (layer, side), numbers in grouping.sides.items():
            if side == "out" and rule_of(modules.get(layer)).owns_output:
                for g in np.unique(grouping.positions(numbers)[0]).tolist():
                    self.producers.setdefault(g, set()).add(layer)

    def blocks(self) -> dict[str, Block]:
        """Blocks in the order of computation: branches first, then regions and layers of a chain that lie in none of them."""
        blocks: list[Block] = []
        inside: set[str] = set()
        for node in self.nodes:
            branch = _branch(node, self.output, self.layers)
            if branch and not any(set(branch[1]) == set(u.layers) for u in blocks):
                shortcut, vanished = branch
                blocks.append(Block(self._name(vanished, blocks), "branch", node.name, shortcut.name, vanished))
                inside.update(vanished)
        for region in self._regions(inside):
            blocks.append(region)
            inside.update(region.layers)
        for node in self.nodes:
            layer = self.layers.get(str(node.target)) if node.op == "call_module" else None
            if layer is None or layer.kind not in ("conv", "linear") or layer.name in inside:
                continue
            found = self._chain(node, layer)
            if isinstance(found, Block):
                blocks.append(found)
            else:
                self.left_alone.setdefault(layer.name, found)
        for name in inside | {layer for u in blocks for layer in u.layers}:
            self.left_alone.pop(name, None)
        order = {u.name: min(self.position[n.name] for n in self.nodes if n.target in u.layers) for u in blocks}
        return {u.name: u for u in sorted(blocks, key=lambda u: order[u.name])}

    def _regions(self, inside: set[str]) -> list[Block]:
        """From a tensor to a later one of its shape that every path from it to the output and from the input to it passes.

        Of all that remove the same layers, the one that starts last and ends last, so that a layer's own normalisation and
        activation go with it; of those that contain each other, the smallest.
        """
        graph = nx.DiGraph()
        for node in self.nodes:
            inputs = [i for i in node.all_input_nodes if i in self.axes or i.name in self.position]
            graph.add_edges_from((i.name, node.name) for i in inputs)
            if not inputs:
                graph.add_edge("", node.name)
        above = nx.immediate_dominators(graph, "")
        by_name = {n.name: n for n in self.nodes}
        found: dict[frozenset[str], tuple[fx.Node, fx.Node, tuple[str, ...]]] = {}
        for node in self.nodes:
            if node.op not in ("call_function", "call_method", "call_module") or _shape(node) is None:
                continue
            before = above.get(node.name)
            while before and before in by_name:
                u = by_name[before]
                if _shape(u) == _shape(node) and u is not node:
                    vanished = _vanished(node, u, self.output, self.layers)
                    heavy = frozenset(name for name in vanished if self.layers[name].kind not in LIGHT)
                    if heavy:
                        if not heavy & inside:
                            found[heavy] = (u, node, vanished)
                        break
                before = above.get(before) if above.get(before) != before else None
        blocks: list[Block] = []
        for heavy, (u, v, vanished) in found.items():
            if any(other < heavy for other in found):
                continue
            sources, reason = self._sources(u, v, set(vanished))
            if reason:
                self.left_alone.update({name: reason for name in vanished if name in heavy})
            else:
                blocks.append(Block(self._name(vanished, blocks), "region", v.name, u.name, vanished, sources))
        return blocks

    def _sources(self, u: fx.Node, v: fx.Node, vanished: set[str]) -> tuple[tuple[tuple[str, Source], ...], str | None]:
        """What becomes of the groups of `v` when its users take `u` instead; or why they cannot."""
        sources: dict[str, Source] = {}
        before, behind = self.axes[u], self.axes[v]
        for axis in set(before) | set(behind):
            if axis not in behind:
                return (), "its input can shrink, but what comes behind it cannot"
            group, index = self.grouping.positions(behind[axis])
            new, new_index = (
                self.grouping.positions(before[axis]) if axis in before else (np.full_like(group, -1), index)
            )
            same = (group == new) & (index == new_index)
            if ((group < 0) & (new >= 0)).any():
                return (), "its input can shrink, but what comes behind it cannot"
            for g in np.unique(group[(group >= 0) & ~same]).tolist():
                name = self.grouping.names[g]
                if self.producers.get(g, set()) - vanished:
                    return (), "its output is tied to other layers"
                where = group == g
                origins = np.unique(new[where]).tolist()
                table = np.full(self.grouping.sizes[name], -1)
                table[index[where]] = new_index[where]
                if len(origins) > 1 or (table[index[where]] != new_index[where]).any():
                    return (), "its input joins several groups of channels"
                if origins[0] < 0:
                    source = Source(Channels((), len(table)))
                elif self.grouping.sizes[self.grouping.names[origins[0]]] == len(np.unique(table)) == len(table):
                    source = Source(Channels(((self.grouping.names[origins[0]], 1),)), table)
                else:
                    return (), "its input joins several groups of channels"
                if name in sources:
                    return (), "its channels appear on two axes"
                sources[name] = source
        return tuple(sources.items()), None

    def _chain(self, node: fx.Node, layer: Layer) -> Block | str:
        """The block of a layer with the normalisation and activation behind it, or the reason why it has to stay."""
        source, modules = node.all_input_nodes[0], self.modules
        last, vanished = node, [layer.name]
        while len(last.users) == 1:
            user = next(iter(last.users))
            module = modules.get(str(user.target)) if user.op == "call_module" else None
            if rule_of(module).vanishes:
                vanished.append(str(user.target))
            elif not rule_of(module).elementwise and user.target not in RECTIFIERS:
                break
            last = user
        if not layer.outputs.parts:
            return "its output channels are fixed"
        if len(layer.outputs.parts) > 1 or layer.outputs.fixed:
            return "its output channels are of several kinds"
        name = layer.outputs.parts[0][0]
        if self.producers[self.grouping.names.index(name)] - set(vanished):
            return "its output is tied to other layers"
        axis = rule_of(modules[layer.name]).channel_axis()
        if _places(source, axis) != _places(last, axis):
            return "it changes the resolution"
        before = layer.inputs
        if not _plain(before) or set(self.axes[source]) - {axis % _rank(source)}:
            return "its input joins several groups of channels"
        sides = [
            key
            for key, numbers in self.grouping.sides.items()
            if name in self._names(numbers) and key[0] not in vanished
        ]
        consumers = {key[0] for key in sides}
        if any(side != "in" or self.layers[c].kind not in ("conv", "linear") for c, side in sides) or not consumers:
            return "the layers behind it cannot be repaired to take its input"
        if not _reaches_only(last, consumers, modules):
            return "what is computed behind it needs its number of channels"
        sources = ((name, Source(before)),)
        return Block(layer.name, "chain", last.name, source.name, tuple(vanished), sources, fold=layer.name)

    def _name(self, vanished: tuple[str, ...], taken: list[Block]) -> str:
        """The module that holds all that is heavy in it, or the first such layer if another block has that name."""
        layers = [name for name in vanished if self.layers[name].kind not in LIGHT]
        prefix = os.path.commonprefix([f"{name}." for name in layers])
        name = prefix[: prefix.rfind(".")]
        return layers[0] if not name or any(u.name == name for u in taken) else name

    def _names(self, numbers: np.ndarray) -> set[str]:
        groups = self.grouping.positions(numbers)[0]
        return {self.grouping.names[g] for g in np.unique(groups[groups >= 0]).tolist()}


def _vanished(node: fx.Node, kept: fx.Node, output: fx.Node, layers: dict[str, Layer]) -> tuple[str, ...]:
    """The layers that nothing needs any more once users of `node` take `kept` instead."""
    after = {n.target for n in ancestors(output, {node: kept}) if n.op in ("call_module", "get_attr")}
    return tuple(name for name in layers if name not in after)


def _rank(node: fx.Node) -> int:
    return len(_shape(node))


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


def _branch(node: fx.Node, output: fx.Node, layers: dict[str, Layer]) -> tuple[fx.Node, tuple[str, ...]] | None:
    """For an addition of two tensors of one shape: the operand that stays, and the layers that vanish with the other."""
    if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
        return None
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    if len(operands) != 2 or any(_shape(a) != _shape(node) for a in operands):
        return None
    best = None
    for kept in operands:
        if not any(n.op == "placeholder" for n in ancestors(kept)):
            continue  # the rest would not depend on the input any more
        vanished = _vanished(node, kept, output, layers)
        weight = sum(layers[name].kind not in LIGHT for name in vanished)
        if weight and (best is None or weight > best[0]):
            best = (weight, kept, vanished)
    return best and best[1:]


def _plain(channels: Channels) -> bool:
    return (len(channels.parts) == 1 and not channels.fixed and channels.parts[0][1] == 1) or not channels.parts


def _places(node: fx.Node, axis: int) -> tuple[int, ...]:
    """The lengths of the axes that run over places in an example."""
    shape = _shape(node)
    return tuple(n for d, n in enumerate(shape) if d not in (0, axis % len(shape)))


def _reaches_only(node: fx.Node, consumers: set[str], modules: dict[str, nn.Module]) -> bool:
    """Whether every path from `node` meets one of `consumers` before anything that mixes tensors or looks at channels."""
    for user in node.users:
        if user.op == "call_module" and user.target in consumers:
            continue
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if not (rule_of(module).passes or user.target in PASSING):
            return False
        if not _reaches_only(user, consumers, modules):
            return False
    return bool(node.users)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return node.meta["shape"]
