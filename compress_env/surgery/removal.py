"""Which regions can be removed whole, read off the graph: residual branches, regions that keep the shape, layers of a chain."""

from __future__ import annotations

import os.path

import networkx as nx
import numpy as np
from torch import fx, nn

from compress_env.surgery.grouping import Grouping
from compress_env.surgery.ir import Block, Channels, Layer, Source
from compress_env.surgery.paths import LIGHT, branch_of, is_plain, places, rank, reaches_only, shape_of, vanished_layers
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.elementwise import RECTIFIERS


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
            branch = branch_of(node, self.output, self.layers)
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
            found = self._chain(node, layer, blocks)
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
            if node.op not in ("call_function", "call_method", "call_module") or shape_of(node) is None:
                continue
            before = above.get(node.name)
            while before and before in by_name:
                u = by_name[before]
                if shape_of(u) == shape_of(node) and u is not node:
                    vanished = vanished_layers(node, u, self.output, self.layers)
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
        """The sources of the groups of `v` when its users take `u` instead; or why they cannot."""
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

    def _chain(self, node: fx.Node, layer: Layer, regions: list[Block]) -> Block | str:
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
        if places(source, axis) != places(last, axis):
            return "it changes the resolution"
        before = layer.inputs
        if not is_plain(before) or set(self.axes[source]) - {axis % rank(source)}:
            return "its input joins several groups of channels"
        sides = [
            key
            for key, numbers in self.grouping.sides.items()
            if name in self._names(numbers) and key[0] not in vanished
        ]
        consumers = {key[0] for key in sides}
        if any(side != "in" or self.layers[c].kind not in ("conv", "linear") for c, side in sides) or not consumers:
            return "the layers behind it cannot be repaired to take its input"
        if any(n.target in consumers and n.meta["shared"] for n in self.nodes):
            return "the layers behind it share weights with others"
        if not reaches_only(last, consumers, modules):
            return "what is computed behind it needs its number of channels"
        if self._joined(name, regions):
            return "without what is behind it, its input would be joined with other channels"
        sources = ((name, Source(before)),)
        return Block(layer.name, "chain", last.name, source.name, tuple(vanished), sources, fold=layer.name)

    def _joined(self, group: str, regions: list[Block]) -> bool:
        """Whether a layer may come to read a group, without the regions behind that, together with others."""
        taken = {group}
        for region in regions:
            taken.update(own for own, source in region.sources if any(part in taken for part, _ in source.channels.parts))
        return any(
            side == "in" and len(set(self.grouping.positions(numbers)[0].tolist())) > 1
            for (_, side), numbers in self.grouping.sides.items()
            if self._names(numbers) & (taken - {group})
        )

    def _name(self, vanished: tuple[str, ...], taken: list[Block]) -> str:
        """The module that holds all that is heavy in it, or the first such layer if another block has that name."""
        layers = [name for name in vanished if self.layers[name].kind not in LIGHT]
        prefix = os.path.commonprefix([f"{name}." for name in layers])
        name = prefix[: prefix.rfind(".")]
        return layers[0] if not name or any(u.name == name for u in taken) else name

    def _names(self, numbers: np.ndarray) -> set[str]:
        groups = self.grouping.positions(numbers)[0]
        return {self.grouping.names[g] for g in np.unique(groups[groups >= 0]).tolist()}
