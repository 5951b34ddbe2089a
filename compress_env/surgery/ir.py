"""The parts of a `LayerGraph`, as frozen values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

FLOAT_BYTES = 4
Readers = tuple[tuple[str, str], ...]
"""Who reads a tensor: pairs of a layer and the tensor's name in it, which is empty where `forward` reads the tensor itself."""


def constant(values: ArrayLike, dtype: type | None = None) -> np.ndarray:
    """An array that cannot be written to."""
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor or of one side of a layer: `parts` of groups, each channel `repeats` times, and `fixed` others."""

    parts: tuple[tuple[str, int], ...] = ()
    fixed: int = 0

    def times(self, factor: int) -> Channels:
        """The same channels with each one `factor` times, as after flattening."""
        return Channels(tuple((g, r * factor) for g, r in self.parts), self.fixed * factor)


@dataclass(frozen=True)
class Term:
    """A cost that is `factor` times the product of the sizes of `axes`."""

    factor: float
    axes: tuple[Channels, ...] = ()


@dataclass(frozen=True)
class Member:
    """A side of a layer that follows a group: feature `position[i]` belongs to the group's channel `channel[i]`.

    side: "in" or "out"; for a bare parameter the axis, "0", "1" and so on.
    """

    layer: str
    side: str
    position: np.ndarray
    channel: np.ndarray


@dataclass(frozen=True)
class Group:
    """Channels that the network ties together; they shrink as one.

    name: the first layer that produces them. size: channels in the teacher; where only whole heads or whole groups of a
    convolution can go, their number. importance: a score for each channel, the least important ones go first.
    floor: the fewest channels that may stay. step: widths are multiples of it, or `size`. ceiling: the most channels it may have,
    where the network may grow; else 0. rows: axes of what a layer reads and gives, other than that of its features, which run over
    the group; their sides are named "0", "1" and so on.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    importance: np.ndarray
    floor: int = 1
    step: int = 1
    rows: tuple[Member, ...] = ()
    ceiling: int = 0

    @property
    def layer(self) -> str:
        """The layer that the group is named after; where its channels are of several kinds, names end in #2, #3 and so on."""
        return self.name.partition("#")[0]

    def allowed(self, width: int) -> int:
        """The largest width up to `width` that the group may have; at least its floor."""
        own = self.size if width >= self.size else 0
        return min(max(self.floor, own, width // self.step * self.step), self.most)

    def kept(self, width: int) -> np.ndarray:
        """Mask `(size,)` of the `width` most important channels; of equal ones, the earlier stay."""
        mask = np.zeros(self.size, bool)
        mask[np.argsort(-self.importance, kind="stable")[:width]] = True
        return mask

    @property
    def most(self) -> int:
        """The most channels that it may have."""
        return max(self.size, self.ceiling)

    def copies(self, width: int) -> np.ndarray:
        """How many times each channel is there `(size,)`: once if it stays, more often where the group is to be wider than it was.

        All are there equally often, and the most important ones once more.
        """
        return width // self.size + self.kept(width % self.size)


@dataclass(frozen=True, eq=False)
class Ranking:
    """An order of the channels of groups, by which `LayerGraph.ranked` decides which of them stay.

    Attributes:
        name: The way it was made, as in `RANKINGS`.
        orders: For each group `(size,)`, the numbers of its channels, the most important first. A group that is absent keeps
            the order that it had.
    """

    name: str
    orders: Mapping[str, np.ndarray]

    @cached_property
    def id(self) -> str:
        """A name for the content, 16 hexadecimal digits: equal if and only if name and orders are."""
        digest = hashlib.sha256(self.name.encode())
        for group, order in sorted(self.orders.items()):
            digest.update(f"\0{group}\0{np.asarray(order).tolist()}".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """The channels that replace a group's when a block goes: those of `channels`; `index[i]` is the one that channel i becomes.

    index is None where sizes differ, and the layers behind are repaired; or where all of them stay.
    """

    channels: Channels
    index: np.ndarray | None = None


@dataclass(frozen=True)
class Block:
    """A region that can be removed whole.

    node, replacement: tensors of the graph; when the block is removed, the users of `node` take `replacement` instead.
    kind: "branch" (a residual branch; its shortcut stays), "region" (from a tensor to a later one of the same shape) or "chain"
    (the next layers are repaired). layers: the layers that vanish. sources: what becomes of the groups of the vanishing
    channels, whose remaining members follow it from then on. fold: for "chain", the layer whose weights the repair folds
    into the next.
    """

    name: str
    kind: str
    node: str
    replacement: str
    layers: tuple[str, ...]
    sources: tuple[tuple[str, Source], ...] = ()
    fold: str | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with weights, as in the teacher. `positions` is the number of outputs per channel and example (height x width).

    kind: "conv", "depthwise", "grouped", "transposed", "linear", "attention", "norm", "parameter" (bare or shared) or "other". kernel:
    weights per pair of channels. parameters: their number. bytes_: of its buffers.
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
    parameters: tuple[Term, ...]
    bytes_: tuple[Term, ...]

    @property
    def all_bytes(self) -> tuple[Term, ...]:
        """Bytes of its float32 parameters and of its buffers."""
        return (*(Term(t.factor * FLOAT_BYTES, t.axes) for t in self.parameters), *self.bytes_)


@dataclass(frozen=True)
class Op:
    """A node of the traced network: `elements` numbers of four bytes per channel and example; views take no memory of their own.

    across: a second axis that runs over channels, if there is one. macs: what it computes. shared: tensors that its layer shares
    with others, which are layers of their own. part: whether it is one of several tensors that the operation before it gives, and
    that took memory from then on.
    """

    name: str
    inputs: tuple[str, ...]
    layer: str | None
    channels: Channels
    elements: float
    view: bool
    what: str
    across: Channels | None = None
    macs: tuple[Term, ...] = ()
    shared: tuple[str, ...] = ()
    part: bool = False

    @property
    def activation(self) -> Term:
        """The numbers in its result, those of eight bytes twice, those of one as a quarter."""
        return Term(self.elements, (self.channels, *([self.across] if self.across else [])))


@dataclass(frozen=True)
class Resize:
    """Numbers in a node's arguments that follow the widths.

    kind: "sizes" of a view, "split" sizes, the bounds of a "slice", or the "groups" of a convolution. axes: for each axis concerned,
    the channels it runs over; for a split, its parts; for a slice, what lies before and what lies within.
    """

    kind: str
    axes: tuple[tuple[int, tuple[Channels, ...]], ...]
