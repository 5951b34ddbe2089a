"""`ChannelFlow`: channel ids on their way through a network, and everything that is noted about its layers on the way.

The idea of torch-pruning's DepGraph (Fang et al., CVPR 2023), which this replaces where networks can be traced: there, the map
from one layer's channels to another's goes wrong or fails where channels are moved (shuffles, attention heads, windows). Here,
an operation without a rule fixes the channels it sees, so that whatever is not understood stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress_env.surgery.call import Call, Ids, nothing, tensors
from compress_env.surgery.channel_ids import Ties, compact, respread, spread

LARGEST_PARAMETER = 200_000
"""A bare tensor with more numbers, an embedding table say, keeps its size."""

LENGTHENED = "lengthened"
"""In the `meta` of a node that repeats a tensor for each channel, along an axis on which there is no batch."""


class ChannelFlow:
    """The channels of a network, as far as they are known; rules note in it what they find.

    Attributes:
        ties: Which channels stay or go together.
        sides: `(layer, side) -> ids (features,)`, None for a side of fixed size. Bare parameters have a side for each of their
            axes, named "0", "1" and so on.
        along: Other channels that a linear layer's cost grows with (in place of tokens).
        products: The channel axes of matrix products without weights.
        parameters: The ids of bare parameters.
        splits, slices: Nodes that cut tensors along an axis that runs over channels, with the places where they do.
        groups: Convolutions without a module of their own, with as many groups as the channels of these ids.
        ids: The channel ids of each node's result.
    """

    def __init__(self) -> None:
        self.ties = Ties()
        self.sides: dict[tuple[str, str], np.ndarray | None] = {}
        self.along: dict[str, Ids] = {}
        self.products: dict[fx.Node, Ids] = {}
        self.parameters: dict[str, Tensor] = {}
        self.splits: dict[fx.Node, tuple[int, Ids, list[int]]] = {}
        self.slices: dict[fx.Node, list[tuple[int, Ids, int, int]]] = {}
        self.groups: dict[fx.Node, Ids] = {}
        self.ids: dict[fx.Node, Any] = {}

    # for rules

    def fix(self, ids: Any, reason: str) -> None:
        """The channels of these ids, of one tensor or of several, have to stay."""
        for each in tensors(ids):
            self.ties.fix(each.numpy(), reason)

    def opaque(self, call: Call, reason: str = "") -> Any:
        """The ids of a result that nothing is known of: the channels that the operation reads have to stay."""
        reason = reason or f"{call.name or call.node.target} has no rule for shrinking"
        for i in call.node.all_input_nodes:
            self.fix(self.ids.get(i, []), reason)
        return nothing(call.result)

    def channels(self, ids: Ids, axis: int, shape: Sequence[int]) -> tuple[np.ndarray | None, Ids]:
        """The ids along `axis`, None if it has a fixed size, and those of other axes."""
        axis %= len(shape)
        own = [each for each in ids if axis in self.ties.varying(each)]
        rest = [each for each in ids if not any(each is o for o in own)]
        if len(own) > 1:
            self.fix(own, "two kinds of channels share an axis")
        return (self.ties.vector(own[0], axis) if own else None), rest

    def side(self, layer: str, side: str, numbers: np.ndarray | None) -> np.ndarray | None:
        """Note the channels of a side; a layer that is called again ties them to those of the first call."""
        first = (layer, side) not in self.sides
        before = self.sides.setdefault((layer, side), numbers)
        if not first and before is not None and numbers is not None:
            self.ties.unite(before, numbers)
        elif not first and (before is None) != (numbers is None):
            known = before if numbers is None else numbers
            assert known is not None
            self.ties.fix(known, f"{layer} is also called with an input of fixed size")
            self.sides[layer, side] = known
        return self.sides[layer, side]

    def fix_side(self, layer: str, side: str, reason: str) -> None:
        """The channels of a side have to stay."""
        numbers = self.sides.get((layer, side))
        if numbers is not None:
            self.ties.fix(numbers, reason)

    def made(self, layer: str, side: str, count: int) -> np.ndarray:
        """The ids `(count,)` of channels that a layer makes itself, the same ones whenever it is called."""
        if self.sides.get((layer, side)) is None:
            self.side(layer, side, self.ties.fresh(count))
        numbers = self.sides[layer, side]
        assert numbers is not None
        return numbers

    def parameter(self, name: str, value: Any) -> Ids | None:
        """The ids of a bare parameter, buffer or constant: each of its numbers may go at first."""
        if not isinstance(value, Tensor):
            return None
        if name in self.parameters:
            return [self.parameters[name]]
        if not value.is_floating_point() or not 1 < value.numel() <= LARGEST_PARAMETER:
            return []
        self.parameters[name] = torch.from_numpy(self.ties.fresh(value.numel())).view(value.shape)
        return [self.parameters[name]]

    def lengthen(self, node: fx.Node, axis: int, numbers: np.ndarray, shape: Sequence[int]) -> bool:
        """Have a tensor of which nothing is known, and that is the same for all channels or a buffer, follow these channels.

        Returns whether it does: a buffer is cut, and the size to which a tensor is expanded is set.
        """
        ids = spread(numbers, tuple(shape), axis)
        if node.op == "get_attr":
            self.parameters[str(node.target)] = ids
        elif node.target == "expand":
            node.meta[LENGTHENED] = True
        else:
            return False
        self.ids[node] = [ids]
        return True

    def combine(self, inputs: Sequence[tuple[Ids, Sequence[int]]], shape: Sequence[int]) -> Ids:
        """Elementwise operation on broadcast tensors: channels that meet are tied, those that meet a fixed size are fixed."""
        shape = tuple(shape)
        padded = [((1,) * (len(shape) - len(s)) + tuple(s), ids) for ids, s in inputs]
        wide = [(own, [each.expand(shape) for each in ids]) for own, ids in padded]
        result: Ids = []
        for i, (_, ids) in enumerate(wide):
            for each in ids:
                axes = self.ties.varying(each)
                for j, (own, others) in enumerate(wide):
                    if j == i or all(own[d] == 1 for d in axes):
                        continue
                    meeting = [o for o in others if set(self.ties.varying(o)) & set(axes)]
                    for other in meeting:
                        self.ties.tie(each, other)
                    if not meeting and axes:
                        self.ties.fix(each.numpy(), "it meets a tensor of fixed size")
                if axes and not any(set(self.ties.varying(r)) & set(axes) for r in result):
                    result.append(each)
        return result

    def same_axis(self, call: Call) -> Ids:
        """Pooling and resampling: the axes that change their length, and those behind the second one, are no channels.

        What runs over others too, such as the numbers of a position embedding, goes as a whole along these.
        """
        x = call.inputs[0]
        old, new = call.shape(x), tuple(call.result.shape)
        found = []
        for each in call.ids[x]:
            axes = self.ties.varying(each)
            pooled = [d for d in axes if d > 1 or len(old) != len(new) or old[d] != new[d]]
            if len(old) != len(new) or (axes and pooled == axes):
                self.fix([each], "its axis is pooled or resampled")
            else:
                self.ties.tie_along(each, pooled)
                found.append(respread(each, new))
        return found

    def tie_rows(self, table: np.ndarray) -> None:
        """Tie all ids of each row."""
        self.ties.unite(table, np.broadcast_to(table[:, :1], table.shape))

    # once all nodes have been followed

    def settle(self) -> None:
        """Make channels run along one axis: where they were spread over several, they shrink along that of most choices."""
        self.parameters = {name: each for name, each in self.parameters.items() if not self._all_fixed(each)}
        self.ids = {node: self._open(ids) for node, ids in self.ids.items()}
        changed = True
        while changed:
            changed = False
            for ids in self._all():
                for each in ids:
                    axes = self.ties.varying(each)
                    if len(axes) > 1:
                        choices = {d: self._choices(each, d) for d in axes}
                        best = max(axes, key=lambda d: (choices[d], -d))
                        self.ties.tie_along(each, [d for d in axes if d != best])
                        changed = True
                taken = [d for each in ids for d in self.ties.varying(each)]
                for each in ids if len(taken) != len(set(taken)) else ():
                    self.fix([each], "two kinds of channels share an axis")
                    self.ties.tie_along(each, range(each.dim()))
                    changed = True

    def axes(self, ids: Iterable[Tensor]) -> dict[int, np.ndarray]:
        """For each axis that runs over channels their ids, once `settle` was called."""
        return {d: self.ties.vector(each, d) for each in ids for d in self.ties.varying(each)}

    def of(self, node: fx.Node) -> Ids:
        """The ids of a node's result, or of all tensors in it."""
        return tensors(self.ids[node])

    def _open(self, ids: Any) -> Any:
        """The same without what is fixed."""
        if isinstance(ids, dict):
            return {key: self._open(part) for key, part in ids.items()}
        if isinstance(ids, tuple):
            return tuple(map(self._open, ids))
        return [each for each in ids if not self._all_fixed(each)]

    def _all_fixed(self, ids: Tensor) -> bool:
        roots = np.unique(self.ties.find(compact(ids).numpy()))
        return len(roots) <= len(self.ties.fixed) and all(r in self.ties.fixed for r in roots.tolist())

    def _choices(self, ids: Tensor, axis: int) -> int:
        """In how many ways the tensor could shrink along `axis`."""
        for d in range(ids.dim()):
            if d != axis:
                ids = ids.narrow(d, 0, 1)
        return len(np.unique(self.ties.find(ids.flatten().numpy())))

    def _all(self) -> Iterator[Ids]:
        for ids in [*self.ids.values(), *([p] for p in self.parameters.values())]:
            yield from _parts(ids)


def _parts(ids: Any) -> Iterator[Ids]:
    """The ids of each tensor of a result."""
    if isinstance(ids, list):
        yield ids
    else:
        for part in ids.values() if isinstance(ids, dict) else ids:
            yield from _parts(part)
