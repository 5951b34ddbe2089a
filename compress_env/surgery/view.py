"""`PrunedView`: the network that is left when blocks are removed, and what it costs at any widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from compress_env.surgery.costs import Polynomial, Spread
from compress_env.surgery.ir import FLOAT_BYTES, Channels, Layer, Op, Term
from compress_env.surgery.structure import Structure

T = TypeVar("T")


class PrunedView:
    """The network without the removed blocks: its costs, exactly, and what its layers are.

    Widths are vectors `(groups,)` in the order of the graph's groups, and give a float; or many of them at once as columns
    `(groups, n)`, and give `(n,)`. All but the masks of what is alive is computed when it is first asked for.
    """

    def __init__(self, graph: Structure, removed: frozenset[str]) -> None:
        self.graph, self.removed = graph, removed
        blocks = [graph.blocks[u] for u in removed]
        self._follow = {block.node: block.replacement for block in blocks}
        self.sources = {group: source for block in blocks for group, source in block.sources}
        self._alive_ops, self._alive_layers = graph.costs.alive(self._follow)

    def resolve(self, name: str) -> str:
        """The tensor that users of this one read."""
        while name in self._follow:
            name = self._follow[name]
        return name

    def has(self, op: str) -> bool:
        """Whether the operation is still needed."""
        return bool(self._alive_ops[self.graph.costs.op[op]])

    @cached_property
    def alive_ops(self) -> frozenset[str]:
        """Names of the operations that are left."""
        return frozenset(self._left({name: name for name in self.graph.ops}, self._alive_ops))

    @cached_property
    def ops(self) -> list[Op]:
        """The operations that are left, in order, with the inputs and channels that they have now."""
        return [
            replace(
                op,
                inputs=tuple(self.resolve(i) for i in op.inputs),
                channels=self.channels(op.channels),
                across=op.across and self.channels(op.across),
                macs=tuple(Term(t.factor, tuple(self.channels(c) for c in t.axes)) for t in op.macs),
            )
            for op in self._left(self.graph.ops, self._alive_ops)
        ]

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that are left, as in the teacher."""
        return self._left(self.graph.layers, self._alive_layers)

    @staticmethod
    def _left(every: Mapping[str, T], alive: np.ndarray) -> list[T]:
        return [x for x, left in zip(every.values(), alive.tolist()) if left]

    def channels(self, channels: Channels) -> Channels:
        """The channels that `channels` of the teacher have become: those of vanished groups are replaced by their source's."""
        if not any(name in self.sources for name, _ in channels.parts):
            return channels
        parts: dict[str, int] = {}
        fixed = channels.fixed
        for name, repeats in channels.parts:
            if name in self.sources:
                source = self.channels(self.sources[name].channels).times(repeats)
            else:
                source = Channels(((name, repeats),))
            fixed += source.fixed
            for group, times in source.parts:
                parts[group] = parts.get(group, 0) + times
        return Channels(tuple(parts.items()), fixed)

    def size(self, channels: Channels, widths: np.ndarray) -> int:
        """Number of channels that are left of `channels` of the teacher."""
        now = self.channels(channels)
        return now.fixed + sum(r * int(widths[self.graph.group_index[g]]) for g, r in now.parts)

    @cached_property
    def _spread(self) -> Spread:
        if not self.sources:
            return None
        matrix, constant = np.eye(len(self.graph.groups)), np.zeros(len(self.graph.groups))
        for name in self.sources:
            i, now = self.graph.group_index[name], self.channels(Channels(((name, 1),)))
            matrix[i], constant[i] = 0, now.fixed
            for group, repeats in now.parts:
                matrix[i, self.graph.group_index[group]] += repeats
        return matrix, constant

    @cached_property
    def alive(self) -> np.ndarray:
        """Mask `(groups,)` of those whose channels still exist."""
        used = self._alive_layers @ self.graph.costs.layer_groups
        return (used if self._spread is None else used @ self._spread[0]) > 0

    @cached_property
    def alive_groups(self) -> frozenset[str]:
        """Groups whose channels still exist."""
        return frozenset(self._left({g: g for g in self.graph.groups}, self.alive))

    def layer_sides(self, widths: np.ndarray) -> dict[str, tuple[int, int]]:
        """Channels in and out of each layer that is left."""
        return {x.name: (self.size(x.inputs, widths), self.size(x.outputs, widths)) for x in self.layers}

    def layer_macs(self, widths: np.ndarray) -> dict[str, float]:
        """MACs of each layer that is left; matrix products without weights under the name of their operation."""
        values = self.graph.costs.macs.factors.T @ self._macs.products(widths)
        found: dict[str, float] = {}
        for op in self._left(self.graph.ops, self._alive_ops):
            if op.macs:
                name = op.layer or op.name
                found[name] = found.get(name, 0.0) + float(values[self.graph.costs.op[op.name]])
        return found

    def layer_parameters(self, widths: np.ndarray) -> dict[str, float]:
        """Parameters of each layer that is left."""
        values = self.graph.costs.parameters.factors.T @ self._parameters.products(widths)
        every = dict(zip(self.graph.layers, values.tolist()))
        return {layer.name: every[layer.name] for layer in self.layers}

    @cached_property
    def _parameters(self) -> Polynomial:
        costs = self.graph.costs
        return costs.parameters.of(costs.parameters.factors @ self._alive_layers, self._spread)

    @cached_property
    def _macs(self) -> Polynomial:
        costs = self.graph.costs
        return costs.macs.of(costs.macs.factors @ self._alive_ops, self._spread)

    @cached_property
    def _bytes(self) -> Polynomial:
        costs = self.graph.costs
        return costs.bytes_.of(costs.bytes_.factors @ self._alive_layers, self._spread)

    @cached_property
    def _activations(self) -> Polynomial:
        return self.graph.costs.peak(self._alive_ops, self._follow, self._spread)

    def parameters(self, widths: np.ndarray) -> float | np.ndarray:
        """Parameters of the network with these widths, exactly."""
        return self._parameters(widths)

    def macs(self, widths: np.ndarray) -> float | np.ndarray:
        """Multiply-accumulates for one example in convolutions, linear layers and matrix products, exactly."""
        return self._macs(widths)

    def weight_bytes(self, widths: np.ndarray) -> float | np.ndarray:
        """Bytes of float32 parameters and of buffers."""
        return self._bytes(widths)

    def activation_bytes(self, widths: np.ndarray) -> float | np.ndarray:
        """Largest sum of activations that are alive at once, for one example, in bytes."""
        return self._activations(widths).max(axis=0) * FLOAT_BYTES
