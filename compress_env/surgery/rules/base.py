"""`Rule`: everything that surgery knows of a family of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from compress_env.surgery.call import Call
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.cutting import Indices, cut

Shape = tuple[int, ...]
Positions = list[tuple[int, int]] | None
"""Places in the output of a layer, or None for all of them."""


@dataclass(frozen=True)
class Geometry:
    """How a layer with weights is described: kind (as in `ir.Layer`), channels, and for convolutions the rest."""

    kind: str
    channels_in: int
    channels_out: int
    kernel: int = 0
    kernel_size: int = 0
    stride: int = 1
    groups: int = 1


class Rule:
    """The knowledge of a family of layers; a subclass says how its own differ from a layer of which nothing is known.

    A layer has *sides*, whose features are channels: "in", "out", and others that its rule may name. The least that a rule for a
    layer with weights needs is `sides`, `produces`, `follow`, `geometry`, `axes` and `sizes`.

    Attributes:
        leaf: Whether the layer is one node of the traced network, its `forward` not looked into.
        sides: Sides that may lose features.
        produces: Those of them whose channels the layer makes itself; groups begin there.
        reads: Those whose features it multiplies with weights; see `weight`.
        weights: Parameters that it multiplies with; by their size, channels are ranked where there are no images.
        owns_output: Whether the channels of its "out" side are its own, so that they cannot be replaced without it.
        elementwise: Whether each number of its result comes from one number of its input.
        vanishes: Whether it goes with the layer in front of it, when that is removed from a chain.
        passes: Whether a layer behind it can be repaired when one in front of it is removed.
        mixes: Whether its "out" side are channels that it reads, and what it gives for one depends on all.
    """

    leaf: bool = True
    sides: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    owns_output: bool = True
    elementwise: bool = False
    vanishes: bool = False
    passes: bool = False
    mixes: bool = False

    # channels

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Note the sides of a layer that is called, and tie channels that it needs together.

        Args:
            flow: Where to note them.
            call: The call, with channel ids of what the layer reads.
            module: The layer.

        Returns:
            The channel ids of its result; a tuple of them if it gives a tuple.
        """
        return flow.opaque(call, f"{call.name} ({type(module).__name__}) has no rule for shrinking")

    def features(self, module: nn.Module, side: str) -> int:
        """Number of features of a side."""
        geometry = self.geometry(module, 0)
        assert geometry is not None, f"{type(module).__name__} has no sides"
        return geometry.channels_in if side == "in" else geometry.channels_out

    def channel_axis(self) -> int:
        """The axis of its input and output that runs over channels."""
        return 1

    def inside(self, module: nn.Module) -> bool:
        """Whether its widths can be followed inside a network that cannot be traced."""
        return False

    def holds(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
        """Whether a layer whose type is derived from the rule's, with a `forward` of its own, does what the rule says.

        Asked once, with what it was called with and what it gave.
        """
        return False

    # costs

    def geometry(self, module: nn.Module, channels: int) -> Geometry | None:
        """The description of the layer, or None if nothing is known of its costs; `channels` are those of its result."""
        return None

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """For each axis of a parameter or buffer the side whose features it runs over, or None; trailing ones may be left out.

        It decides what the layer costs at smaller widths and what a student inherits. `name` is relative to the layer.
        """
        return ()

    def macs(
        self, module: nn.Module, inputs: Sequence[Shape], total: float
    ) -> Sequence[tuple[float, tuple[str, ...]]]:
        """Parts of the layer's multiply-accumulates, each with the sides that it is proportional to; else those of its weights.

        Args:
            module: The layer.
            inputs: Shapes of the tensors that it reads, for one example.
            total: All that it computes for one example.
        """
        axes = self.axes(module, self.weights[0], module.get_parameter(self.weights[0])) if self.weights else ()
        return [(total, tuple(side for side in self.sides if side in axes))]

    # students

    def sizes(self, module: nn.Module, kept: Mapping[str, int]) -> Mapping[str, Any]:
        """Attributes of the layer that follow its widths; `kept` has the number of features of each side that has others."""
        return {}

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """A copy of the layer with the features that `indices` name, which shares nothing with it."""
        kept = {side: len(index) for side, index in indices.items()}
        return cut(module, lambda name, value: self.axes(module, name, value), indices, self.sizes(module, kept), self.reads)

    def linear_part(self, module: nn.Module) -> Tensor:
        """The matrix `(out, in)` that the layer applies to channels; asked of what can be removed from a chain."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its layers do to channels")

    def take_input(self, module: nn.Module, linear: Tensor) -> None:
        """Let the layer, in place, take the input of a removed one that applied `linear` `(out, in)`, in place of its output."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its layers take another input")

    def scale(self, module: nn.Module) -> Tensor | None:
        """The factors `(channels,)` by which a layer that `vanishes` scales its input, if they are fixed."""
        return None

    # ranking and refit

    def scores(self, module: nn.Module, side: str) -> np.ndarray | None:
        """The squared norm `(features,)` of the weights of each feature of a side, or None if there are none."""
        total = None
        for name in self.weights:
            value = module.get_parameter(name)
            axes = self.axes(module, name, value)
            if side in axes:
                norms = value.detach().square().movedim(axes.index(side), 0).flatten(1).sum(1).double()
                total = norms if total is None else total + norms
        return None if total is None else total.cpu().numpy()

    def fitted(self, module: nn.Module) -> nn.Module | None:
        """The part with `weight` and `bias` that the refit solves for; None if there is none.

        It reads the last side of `reads`, and its output is the layer's.
        """
        return None

    def formula(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """What the part that is fitted makes of an input, if that can be said; to compare a layer of a derived type with it."""
        return None

    def positions(self, module: nn.Module, name: str, output: Tensor, count: int) -> Positions:
        """Up to `count` places of each example at which samples are taken, always the same for a name; None for all."""
        return None

    def weight(self, module: nn.Module, side: str) -> Tensor:
        """The weights `(outputs, features, kernel)` by which the features of a side in `reads` are multiplied."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """Samples `(n, features * kernel)` of the features of a side in `reads`, for a call with these arguments."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

    def written(self, module: nn.Module, output: Any, positions: Positions) -> Tensor:
        """Samples `(n, outputs)` of the layer's output that belong to those of `read`."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

    def keeps_statistics(self, module: nn.Module) -> bool:
        """Whether it normalises by statistics of training data, which a student has to take anew."""
        return False

    def renormalise(self, module: nn.Module, parts: list[Tensor]) -> None:
        """Replace each part of a batch by its normalised values; the layer, which keeps statistics, takes over those of all parts."""
        raise NotImplementedError(f"{type(self).__name__} keeps no statistics")


def along(call: Call, position: int, default: Any = None) -> Any:
    """The axis or axes that a function works along, given at this position or by name; PyTorch takes NumPy's `axis`, too."""
    names = ("dim", "dims", "axis")
    return call.evaluated(call.argument(position, next((n for n in names if n in call.node.kwargs), "dim"), default))


def first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call."""
    return args[0] if args else next(iter(kwargs.values()))
