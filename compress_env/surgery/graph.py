"""`LayerGraph`: what was found in a teacher, and what is left of it when blocks are removed and groups shrink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx, nn

from compress_env.errors import InvalidPlan
from compress_env.registry import unknown
from compress_env.surgery.costs import Costs, Polynomial, Spread
from compress_env.surgery.ir import FLOAT_BYTES, Block, Channels, Group, Layer, Op, Ranking, Resize, Term
from compress_env.surgery.plan import Plan

LEVELS = 1024
WHOLE = "network"
"""Name of the only layer of a network that cannot be traced at all."""


class PrunedView:
    """The network without the removed blocks: its costs, exactly, and what its layers are.

    Widths are vectors `(groups,)` in the order of the graph's groups, and give a float; or many of them at once as columns
    `(groups, n)`, and give `(n,)`. All but the masks of what is alive is computed when it is first asked for.
    """

    def __init__(self, graph: LayerGraph, removed: frozenset[str]):
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
    def _left(every: Mapping[str, Any], alive: np.ndarray) -> list:
        return [x for x, left in zip(every.values(), alive.tolist()) if left]

    def channels(self, channels: Channels) -> Channels:
        """What `channels` of the teacher have become: those of vanished groups are replaced by their source's."""
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

    @cached_property
    def op_channels(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and constant: `matrix @ widths + constant` are the channels of each op's tensor."""
        matrix = np.zeros((len(self.ops), len(self.graph.groups)))
        for i, op in enumerate(self.ops):
            for name, repeats in op.channels.parts:
                matrix[i, self.graph.group_index[name]] += repeats
        return matrix, np.array([op.channels.fixed for op in self.ops], float)

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
        """Largest sum of float32 activations that are alive at once, for one example, in bytes."""
        return self._activations(widths).max(axis=0) * FLOAT_BYTES


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """A teacher as a compression problem: blocks that can go, groups that can shrink, and what everything costs.

    `blocks`, `groups`, `layers` and `ops` are in the order in which the network computes them. `left_alone` maps layers
    that stay as they are to the reason. The teacher itself is not held.
    resizes: nodes with numbers that follow the widths. parameter_shapes: length of the axes of bare parameters that may shrink.
    """

    fx_graph: fx.Graph
    ops: Mapping[str, Op]
    output: str
    layers: Mapping[str, Layer]
    blocks: Mapping[str, Block]
    groups: Mapping[str, Group]
    left_alone: Mapping[str, str]
    input_shape: tuple[int, ...]
    resizes: Mapping[str, Resize] = field(default_factory=dict)
    parameter_shapes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    teacher_name: str = ""
    _views: dict[frozenset[str], PrunedView] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def group_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.groups)}

    @cached_property
    def costs(self) -> Costs:
        """The cost model, compiled."""
        return Costs(self)

    def ranked(self, ranking: Ranking) -> LayerGraph:
        """The same graph, whose students keep the channels that come first in `ranking`.

        Groups that the ranking does not name keep the importance that they have. This graph is not changed.
        Raises InvalidPlan if the ranking is one of another network.
        """
        groups = dict(self.groups)
        for name, order in ranking.orders.items():
            if name not in groups or not np.array_equal(np.sort(order), np.arange(groups[name].size)):
                raise InvalidPlan(f"the ranking {ranking.name!r} is not one of this network: see its group {name!r}")
            groups[name] = replace(groups[name], importance=-np.argsort(order))
        new = replace(self, groups=groups)
        new.__dict__["costs"] = self.costs  # which channels stay makes no difference to what they cost
        return new

    @property
    def student_name(self) -> str:
        return f"Student{self.teacher_name}"

    def holding(self, teacher: nn.Module) -> nn.Module:
        """The module in which the graph's names are found: the teacher, or one that holds it, if it is a single opaque layer."""
        if WHOLE not in self.layers or isinstance(getattr(teacher, WHOLE, None), nn.Module):
            return teacher
        holder = nn.Module()
        holder.add_module(WHOLE, teacher)
        return holder

    @cached_property
    def features(self) -> dict[tuple[str, str], int]:
        """Features of each side of a layer, in the teacher."""
        sizes = {}
        for layer in self.layers.values():
            sizes[layer.name, "in"], sizes[layer.name, "out"] = layer.channels_in, layer.channels_out
        return sizes | self.parameter_shapes

    def layer_of(self, name: str) -> Layer:
        """The layer of this name, or the opaque one that it lies in."""
        while name not in self.layers:
            name = name.rpartition(".")[0]
        return self.layers[name]

    def full_size(self, channels: Channels) -> int:
        """Number of these channels in the teacher."""
        return channels.fixed + sum(r * self.groups[g].size for g, r in channels.parts)

    @cached_property
    def full(self) -> np.ndarray:
        """Widths of the teacher `(groups,)`."""
        return np.array([g.size for g in self.groups.values()], int)

    @cached_property
    def floor(self) -> np.ndarray:
        """Smallest widths `(groups,)`."""
        return np.array([g.floor for g in self.groups.values()], int)

    def allowed(self, widths: np.ndarray) -> np.ndarray:
        """The largest widths `(groups,)` up to `widths` that the groups may have; at least their floors."""
        steps = np.array([g.step for g in self.groups.values()], int)
        stepped = np.maximum(self.floor, np.asarray(widths).astype(int) // steps * steps)
        return np.where(np.asarray(widths) >= self.full, self.full, stepped)

    @cached_property
    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """All widths that groups have at one share, as columns `(groups, n)` that grow, and the largest share `(n,)` of each.

        Shares are multiples of 1/1024 up to 1; floors and multiples are kept, so that a group may have more than its share.
        """
        shares = np.arange(LEVELS + 1) / LEVELS
        widths = np.array([self.allowed(np.floor(share * self.full + 1e-6)) for share in shares]).T
        last = np.append((widths[:, 1:] != widths[:, :-1]).any(0), True)
        return widths[:, last], shares[last]

    def view(self, removed: frozenset[str]) -> PrunedView:
        """The network without `removed` blocks; remembered, since a search asks for the same ones again and again."""
        if removed not in self._views:
            if len(self._views) > 4096:
                self._views.clear()
            self._views[removed] = PrunedView(self, removed)
        return self._views[removed]

    def forget(self) -> None:
        """Drop what `view` remembers, to see what it costs without."""
        self._views.clear()

    def widths(self, plan: Plan) -> np.ndarray:
        """Widths `(groups,)` of a plan."""
        w = self.full.copy()
        for name, n in plan.widths:
            w[self.group_index[name]] = n
        return w

    def canonical(self, removed: frozenset[str], widths: np.ndarray | Mapping[str, int]) -> Plan:
        """The plan without what makes no difference: blocks inside removed ones, widths of vanished groups or as in the teacher."""
        if not isinstance(widths, Mapping):
            widths = {name: int(n) for name, n in zip(self.groups, widths)}
        kept = set(removed)
        for name in sorted(removed):
            if not self.view(frozenset(kept - {name})).has(self.blocks[name].node):
                kept.discard(name)
        alive = self.view(frozenset(kept)).alive_groups
        return Plan.of(kept, {g: n for g, n in widths.items() if g in alive and n != self.groups[g].size})

    def check(self, plan: Plan) -> None:
        """Raises InvalidPlan naming the block, group or width that this graph does not have."""
        for name in plan.removed:
            if name not in self.blocks:
                raise InvalidPlan(f"the plan removes {name!r}: {unknown('block', name, list(self.blocks))}")
        for name, n in plan.widths:
            if name not in self.groups:
                raise InvalidPlan(f"the plan shrinks {name!r}: {unknown('group', name, list(self.groups))}")
            if not 1 <= n <= self.groups[name].size:
                raise InvalidPlan(f"the plan keeps {n} channels of {name!r}, which has {self.groups[name].size}")
