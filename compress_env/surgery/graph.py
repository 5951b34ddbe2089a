"""`LayerGraph`: what was found in a teacher, and what is left of it when units are removed and groups shrink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import fx

from compress_env.errors import InvalidPlan
from compress_env.registry import unknown
from compress_env.surgery.plan import StudentPlan

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor or of one side of a layer: `parts` of groups, each channel `repeats` times, and `fixed` others.

    `size(widths)` is their number when the groups have those widths.
    """

    parts: tuple[tuple[str, int], ...] = ()
    fixed: int = 0

    def times(self, factor: int) -> Channels:
        """The same channels with each one `factor` times, as after flattening."""
        return Channels(tuple((g, r * factor) for g, r in self.parts), self.fixed * factor)


@dataclass(frozen=True)
class Member:
    """A side ("in" or "out") of a layer that follows a group: feature `position[i]` belongs to the group's channel `channel[i]`."""

    layer: str
    side: str
    position: np.ndarray
    channel: np.ndarray


@dataclass(frozen=True)
class Group:
    """Channels that the network ties together; they shrink as one.

    name: the first layer that produces them. size: channels in the teacher. importance: a score for each channel, the
    least important ones go first. floor: the fewest channels that may stay.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    importance: np.ndarray
    floor: int = 1

    def kept(self, width: int) -> np.ndarray:
        """Mask `(size,)` of the `width` most important channels; of equal ones, the earlier stay."""
        mask = np.zeros(self.size, bool)
        mask[np.argsort(-self.importance, kind="stable")[:width]] = True
        return mask


@dataclass(frozen=True)
class Unit:
    """A region that can be removed whole.

    node, replacement: tensors of the graph; when the unit is removed, the users of `node` take `replacement` instead.
    kind: "branch" (a residual branch; its shortcut stays), "same-shape" (nothing stays) or "chain" (the next layers are
    repaired). layers: the layers that vanish. group: for the last two kinds, the group of the vanishing channels, whose
    remaining members follow `source` from then on. fold: for "chain", the layer whose weights the repair folds into the next.
    """

    name: str
    kind: str
    node: str
    replacement: str
    layers: tuple[str, ...]
    group: str | None = None
    source: Channels | None = None
    fold: str | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with weights, as in the teacher. `positions` is the number of outputs per channel and example (height x width).

    kind: "conv", "depthwise", "grouped", "linear", "norm" or "other". kernel: weights per pair of channels.
    fixed_params, fixed_bytes: what does not depend on widths; per_channel counts the rest that grows with the outputs.
    """

    name: str
    kind: str
    inputs: Channels
    outputs: Channels
    channels_in: int
    channels_out: int
    kernel: int
    kernel_size: int
    stride: int
    groups: int
    positions: int
    positions_in: int
    params_per_channel: int
    buffers_per_channel: int
    fixed_params: int
    fixed_bytes: int


@dataclass(frozen=True)
class Op:
    """A node of the traced network: `elements` numbers per channel and example; views take no memory of their own."""

    name: str
    inputs: tuple[str, ...]
    layer: str | None
    channels: Channels
    elements: int
    view: bool
    what: str


@dataclass(eq=False)
class Reduced:
    """The network without the removed units: what its cost depends on, as arrays over groups.

    Widths are vectors `(groups,)` in the order of the graph's groups. Sizes are pairs: `matrix @ widths + constant`.
    """

    graph: LayerGraph
    removed: frozenset[str]
    ops: list[Op] = field(init=False)
    layers: list[Layer] = field(init=False)

    def __post_init__(self):
        g = self.graph
        follow = {g.units[u].node: g.units[u].replacement for u in self.removed}

        def resolve(name: str) -> str:
            while name in follow:
                name = follow[name]
            return name

        self.resolve = resolve
        inputs = {op.name: tuple(resolve(i) for i in op.inputs) for op in g.ops.values()}
        alive, todo = set(), [g.output]
        while todo:
            name = todo.pop()
            if name not in alive:
                alive.add(name)
                todo.extend(inputs[name])
        self.sources = {g.units[u].group: g.units[u].source for u in self.removed if g.units[u].group}
        self.ops = [
            Op(op.name, inputs[op.name], op.layer, self.channels(op.channels), op.elements, op.view, op.what)
            for op in g.ops.values()
            if op.name in alive
        ]
        present = {op.layer for op in self.ops if op.layer}
        self.layers = [layer for layer in g.layers.values() if layer.name in present]

    def channels(self, channels: Channels) -> Channels:
        """What `channels` of the teacher have become: those of vanished groups are replaced by their source's."""
        if not any(name in self.sources for name, _ in channels.parts):
            return channels
        parts, fixed = [], channels.fixed
        for name, repeats in channels.parts:
            if name in self.sources:
                source = self.channels(self.sources[name]).times(repeats)
                parts += source.parts
                fixed += source.fixed
            else:
                parts.append((name, repeats))
        return Channels(tuple(parts), fixed)

    @cached_property
    def alive_groups(self) -> frozenset[str]:
        """Groups whose channels still exist."""
        return frozenset(g for layer in self.layers for g, _ in self.channels(layer.outputs).parts)

    def _linear(self, rows: list[Channels]) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(rows), len(self.graph.groups)))
        for i, channels in enumerate(rows):
            for name, repeats in channels.parts:
                matrix[i, self.graph.group_index[name]] += repeats
        return matrix, np.array([c.fixed for c in rows], float)

    @cached_property
    def layer_inputs(self):
        return self._linear([self.channels(layer.inputs) for layer in self.layers])

    @cached_property
    def layer_outputs(self):
        return self._linear([self.channels(layer.outputs) for layer in self.layers])

    @cached_property
    def op_channels(self):
        return self._linear([op.channels for op in self.ops])

    @cached_property
    def _costs(self) -> tuple[np.ndarray, ...]:
        """Per layer: weights per pair of channels, positions, whether it is depthwise, weights per output channel."""
        layers = self.layers
        return (
            np.array([layer.kernel / (layer.groups if layer.kind == "grouped" else 1) for layer in layers]),
            np.array([layer.positions for layer in layers], float),
            np.array([layer.kind == "depthwise" for layer in layers]),
            np.array([layer.params_per_channel for layer in layers], float),
        )

    def _pairs(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights in the kernel of each layer, and its output channels."""
        kernel, _, depthwise, _ = self._costs
        inputs, outputs = (matrix @ widths + fixed for matrix, fixed in (self.layer_inputs, self.layer_outputs))
        return kernel * np.where(depthwise, 1, inputs) * outputs, outputs

    def parameters(self, widths: np.ndarray) -> float:
        """Parameters of the network with these widths, exactly."""
        weights, outputs = self._pairs(widths)
        return float((weights + self._costs[3] * outputs).sum() + sum(layer.fixed_params for layer in self.layers))

    def macs(self, widths: np.ndarray) -> float:
        """Multiply-accumulates for one example in convolutions and linear layers, exactly."""
        return float((self._pairs(widths)[0] * self._costs[1]).sum())

    def weight_bytes(self, widths: np.ndarray) -> float:
        """Bytes of float32 parameters and of buffers."""
        buffers = np.array([layer.buffers_per_channel for layer in self.layers], float)
        matrix, fixed = self.layer_outputs
        per_layer = sum(layer.fixed_bytes for layer in self.layers)
        return self.parameters(widths) * FLOAT_BYTES + float(buffers @ (matrix @ widths + fixed)) + per_layer

    def activation_bytes(self, widths: np.ndarray) -> float:
        """Largest sum of float32 activations that are alive at once, for one example, in bytes."""
        matrix, fixed = self.op_channels
        elements = np.array([op.elements for op in self.ops], float)
        return float((self.liveness @ (elements * (matrix @ widths + fixed))).max()) * FLOAT_BYTES

    @cached_property
    def liveness(self) -> np.ndarray:
        """Matrix `(ops, ops)`: entry (i, j) is 1 where tensor j takes memory while op i runs; views keep their source alive."""
        index = {op.name: i for i, op in enumerate(self.ops)}
        storage = {}
        for op in self.ops:
            storage[op.name] = storage[op.inputs[0]] if op.view and op.inputs else op.name
        live = np.zeros((len(self.ops), len(self.ops)))
        last = {name: index[name] for name in index}
        for i, op in enumerate(self.ops):
            for name in op.inputs:
                last[storage[name]] = max(last[storage[name]], i)
        for op in self.ops:
            if storage[op.name] == op.name:
                live[index[op.name] : last[op.name] + 1, index[op.name]] = 1
        return live


@dataclass(eq=False)
class LayerGraph:
    """A teacher as a compression problem: units that can go, groups that can shrink, and what everything costs.

    `units`, `groups`, `layers` and `ops` are in the order in which the network computes them. `left_alone` maps layers
    that stay as they are to the reason. The teacher itself is not held.
    """

    fx_graph: fx.Graph
    ops: dict[str, Op]
    output: str
    layers: dict[str, Layer]
    units: dict[str, Unit]
    groups: dict[str, Group]
    left_alone: dict[str, str]
    input_shape: tuple[int, ...]
    _reduced: dict[frozenset, Reduced] = field(default_factory=dict, repr=False)

    @cached_property
    def group_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.groups)}

    @cached_property
    def full(self) -> np.ndarray:
        """Widths of the teacher `(groups,)`."""
        return np.array([g.size for g in self.groups.values()], int)

    @cached_property
    def floor(self) -> np.ndarray:
        """Smallest widths `(groups,)`."""
        return np.array([g.floor for g in self.groups.values()], int)

    def reduce(self, removed: frozenset[str]) -> Reduced:
        """The network without `removed` units; remembered, since a search asks for the same ones again and again."""
        if removed not in self._reduced:
            if len(self._reduced) > 4096:
                self._reduced.clear()
            self._reduced[removed] = Reduced(self, removed)
        return self._reduced[removed]

    def widths(self, plan: StudentPlan) -> np.ndarray:
        """Widths `(groups,)` of a plan."""
        w = self.full.copy()
        for name, n in plan.widths:
            w[self.group_index[name]] = n
        return w

    def canonical(self, removed: frozenset[str], widths: np.ndarray | Mapping[str, int]) -> StudentPlan:
        """The plan without what makes no difference: units inside removed ones, widths of vanished groups or as in the teacher."""
        if not isinstance(widths, Mapping):
            widths = {name: int(n) for name, n in zip(self.groups, widths)}
        kept = set(removed)
        for name in sorted(removed):
            others = frozenset(kept - {name})
            ops = {op.name for op in self.reduce(others).ops}
            if self.units[name].node not in ops:
                kept.discard(name)
        alive = self.reduce(frozenset(kept)).alive_groups
        return StudentPlan.of(kept, {g: n for g, n in widths.items() if g in alive and n != self.groups[g].size})

    def check(self, plan: StudentPlan) -> None:
        """Raises InvalidPlan naming the unit, group or width that this graph does not have."""
        for name in plan.removed:
            if name not in self.units:
                raise InvalidPlan(f"the plan removes {name!r}: {unknown('unit', name, list(self.units))}")
        for name, n in plan.widths:
            if name not in self.groups:
                raise InvalidPlan(f"the plan shrinks {name!r}: {unknown('group', name, list(self.groups))}")
            if not 1 <= n <= self.groups[name].size:
                raise InvalidPlan(f"the plan keeps {n} channels of {name!r}, which has {self.groups[name].size}")
