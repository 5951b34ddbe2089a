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
    growth: how many times its channels a group may have at most; more than 1 where a network is to grow.
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
    growth: float = 1.0
    shared: Mapping[str, Readers] = field(default_factory=dict)
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

    def growing(self, growth: float) -> LayerGraph:
        """The same graph, whose groups may have up to `growth` times their channels. This graph is not changed."""
        new = replace(self, growth=growth)
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
            if not 1 <= n <= round(self.groups[name].size * self.growth):
                raise InvalidPlan(f"the plan keeps {n} channels of {name!r}, which has {self.groups[name].size}")
