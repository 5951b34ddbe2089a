"""`LayerGraph`: what was found in a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor, fx, nn

from compress_env.errors import InvalidPlan
from compress_env.registry import unknown
from compress_env.surgery.ir import Channels, Layer, Ranking, Readers, Resize, constant
from compress_env.surgery.plan import Plan
from compress_env.surgery.structure import Structure
from compress_env.surgery.view import PrunedView

LEVELS = 1024
WHOLE = "network"
"""Name of the only layer of a network that cannot be traced at all."""


@dataclass(frozen=True, eq=False)
class LayerGraph(Structure):
    """A teacher as a compression problem: blocks that can go, groups that can shrink, and what everything costs.

    `blocks`, `groups`, `layers` and `ops` are in the order in which the network computes them. `left_alone` maps layers
    that stay as they are to the reason. The teacher itself is not held.
    optional: blocks that the network does not have as it came; a plan may insert them.
    resizes: nodes with numbers that follow the widths. parameter_shapes: length of the axes of bare parameters that may shrink.
    plain_layout: whether students are computed in PyTorch's own layout, since the network does not run channels last.
    constants: tensors that the network makes in its forward, by the name by which `fx_graph` reads them.
    shared: who reads the tensors that several parts of the network read.
    """

    fx_graph: fx.Graph
    left_alone: Mapping[str, str]
    input_shape: tuple[int, ...]
    resizes: Mapping[str, Resize] = field(default_factory=dict)
    parameter_shapes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    teacher_name: str = ""
    plain_layout: bool = False
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Readers] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    _views: dict[frozenset[str], PrunedView] = field(default_factory=dict, init=False, repr=False)

    def ranked(self, ranking: Ranking) -> LayerGraph:
        """The same graph, whose students keep the channels that come first in `ranking`.

        Groups that the ranking does not name keep the importance that they have. This graph is not changed.
        Raises InvalidPlan if the ranking is one of another network.
        """
        groups = dict(self.groups)
        for name, order in ranking.orders.items():
            if name not in groups or not np.array_equal(np.sort(order), np.arange(groups[name].size)):
                raise InvalidPlan(f"the ranking {ranking.name!r} is not one of this network: see its group {name!r}")
            groups[name] = replace(groups[name], importance=constant(-np.argsort(order)))
        new = replace(self, groups=groups)
        new.__dict__["costs"] = self.costs  # which channels stay makes no difference to what they cost
        return new

    def growing(self, group: str, channels: int) -> LayerGraph:
        """The same graph, whose group of this name may have so many channels. This graph is not changed."""
        new = replace(self, groups={**self.groups, group: replace(self.groups[group], ceiling=channels)})
        new.__dict__["costs"] = self.costs
        return new

    @property
    def student_name(self) -> str:
        """The name of the class of its students."""
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
        sizes: dict[tuple[str, str], int] = {}
        for layer in self.layers.values():
            sizes[layer.name, "in"], sizes[layer.name, "out"] = layer.channels_in, layer.channels_out
        return {**sizes, **self.parameter_shapes}

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
        return constant([g.size for g in self.groups.values()], int)

    @cached_property
    def floor(self) -> np.ndarray:
        """Smallest widths `(groups,)`."""
        return constant([g.floor for g in self.groups.values()], int)

    def allowed(self, widths: np.ndarray) -> np.ndarray:
        """The largest widths `(groups,)` up to `widths` that the groups may have; at least their floors."""
        steps = np.array([g.step for g in self.groups.values()], int)
        stepped = np.maximum(self.floor, np.asarray(widths).astype(int) // steps * steps)
        return np.minimum(np.where(np.asarray(widths) >= self.full, np.maximum(self.full, stepped), stepped), self.most)

    @cached_property
    def most(self) -> np.ndarray:
        """Largest widths `(groups,)`: the teacher's, unless the network may grow."""
        return constant([g.most for g in self.groups.values()], int)

    @cached_property
    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """All widths that groups have at one share, as columns `(groups, n)` that grow, and the largest share `(n,)` of each.

        Shares are multiples of 1/1024 up to 1, or up to the largest growth; floors, multiples and the widest are kept, so that a group
        may have more or less than its share.
        """
        growth = float((self.most / self.full).max(initial=1.0))
        shares = np.arange(round(LEVELS * growth) + 1) / LEVELS
        widths = np.array([self.allowed(np.floor(share * self.full + 1e-6)) for share in shares]).T
        last = np.append((widths[:, 1:] != widths[:, :-1]).any(0), True)
        return widths[:, last], shares[last]

    def view(self, switched: frozenset[str]) -> PrunedView:
        """The network in which these blocks are not as they came: removed, or inserted if they are optional.

        It is remembered, since a search asks for the same ones again and again.
        """
        if switched not in self._views:
            if len(self._views) > 4096:
                self._views.clear()
            self._views[switched] = PrunedView(self, switched ^ self.optional)
        return self._views[switched]

    def forget(self) -> None:
        """Drop what `view` remembers, to see what it costs without."""
        self._views.clear()

    def widths(self, plan: Plan) -> np.ndarray:
        """Widths `(groups,)` of a plan."""
        w = self.full.copy()
        for name, n in plan.widths:
            w[self.group_index[name]] = n
        return w

    def canonical(self, switched: frozenset[str], widths: np.ndarray | Mapping[str, int]) -> Plan:
        """The plan without what makes no difference: blocks inside removed ones, widths of vanished groups or as in the teacher.

        Args:
            switched: Blocks that are not as they came: removed, or inserted if they are optional.
            widths: Channels of the groups, `(groups,)` or by name.
        """
        if not isinstance(widths, Mapping):
            widths = {name: int(n) for name, n in zip(self.groups, widths)}
        kept = set(switched)
        for name in sorted(switched):
            there = kept if name in self.optional else kept - {name}
            if not self.view(frozenset(there)).has(self.blocks[name].node):
                kept.discard(name)
        alive = self.view(frozenset(kept)).alive_groups
        changed = {g: n for g, n in widths.items() if g in alive and n != self.groups[g].size}
        return Plan.of(kept - self.optional, changed, kept & self.optional)

    def check(self, plan: Plan) -> None:
        """Raises InvalidPlan naming the block, group or width that this graph does not have."""
        for name in plan.removed:
            if name not in self.blocks:
                raise InvalidPlan(f"the plan removes {name!r}: {unknown('block', name, list(self.blocks))}")
        for name in plan.inserted:
            if name not in self.optional:
                raise InvalidPlan(f"the plan inserts {name!r}: {unknown('place', name, sorted(self.optional))}")
        for name, n in plan.widths:
            if name not in self.groups:
                raise InvalidPlan(f"the plan shrinks {name!r}: {unknown('group', name, list(self.groups))}")
            if not 1 <= n <= self.groups[name].most:
                raise InvalidPlan(f"the plan keeps {n} channels of {name!r}, which has {self.groups[name].size}")
