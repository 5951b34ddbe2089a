"""Layers whose outputs are linear in their inputs: linear ones and convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_env.surgery.call import Call, Ids
from compress_env.surgery.channel_ids import respread, spread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Geometry, Positions, Rule, first
from compress_env.surgery.rules.cutting import Indices, cut
from compress_env.surgery.rules.exchange import exchanged, order
from compress_env.surgery.rules.registry import register_rule
from compress_env.surgery.samples import places


class Dense(Rule):
    """The family: sides "in" and "out", one matrix of weights `(out, in, ...)`."""

    sides = ("in", "out")
    produces = ("out",)
    reads = ("in",)
    weights = ("weight",)

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Its inputs are channels of what it reads, its outputs are its own; channels on other axes stay where they are."""
        if len(call.inputs) != 1:
            return super().follow(flow, call, module)
        name, axis, shape = call.name, self.channel_axis(), tuple(call.result.shape)
        x = call.inputs[0]
        numbers, rest = flow.channels(call.ids[x], axis, call.shape(x))
        rest = self.carried(flow, call, module, rest)
        flow.side(name, "in", numbers)
        out = flow.made(name, "out", shape[axis])
        self.tie(flow, name, module, numbers, out)
        along = [respread(each, shape) for each in rest]
        flow.along[name] = along
        return [*along, spread(out, shape, axis)]

    def carried(self, flow: ChannelFlow, call: Call, module: nn.Module, ids: Ids) -> Ids:
        """The ids of other axes that its result still has."""
        return ids

    def tie(
        self, flow: ChannelFlow, name: str, module: nn.Module, numbers: np.ndarray | None, out: np.ndarray
    ) -> None:
        """Tie inputs and outputs that need each other."""

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """The weight runs over outputs and inputs, a bias over outputs."""
        if name == "weight":
            return ("out", "in")
        own = "." not in name and value.dim() and value.shape[0] == self.features(module, "out")
        return ("out",) if own else ()

    def linear_part(self, module: nn.Module) -> Tensor:
        """The weights summed over the kernel."""
        weight: Any = module.weight
        return weight.flatten(2).sum(2) if weight.dim() > 2 else weight

    def take_input(self, module: nn.Module, linear: Tensor) -> None:
        """The weights times the removed layer's."""
        weight: Any = module.weight
        split = weight.reshape(weight.shape[0], linear.shape[0], -1)
        merged = torch.matmul(linear.T, split)
        shape = (weight.shape[0], linear.shape[1], *weight.shape[2:])
        module.weight = nn.Parameter(merged.reshape(shape) if weight.dim() > 2 else merged.flatten(1))
        for name, size in self.sizes(module, {"in": linear.shape[1]}).items():
            setattr(module, name, size)

    def holds(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
        """If its inputs, and its outputs, can change places; padding or standardised weights of its own make no difference to that."""
        groups, axis = getattr(module, "groups", 1), self.channel_axis()
        orders = {side: order(self.features(module, side), groups) for side in self.sides}
        return exchanged(module, self.axes, orders, (first(args, kwargs), axis, "in"), (output, axis, "out"))

    def inside(self, module: nn.Module) -> bool:
        """Grouped convolutions are not followed."""
        return getattr(module, "groups", 1) == 1

    def weight(self, module: nn.Module, side: str) -> Tensor:
        """The weights `(outputs, inputs, kernel)`."""
        weight: Any = module.weight
        return weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)


@register_rule(nn.Linear)
class Linear(Dense):
    """`nn.Linear`."""

    def channel_axis(self) -> int:
        """The last axis."""
        return -1

    def geometry(self, module: nn.Module, channels: int) -> Geometry:
        """A kernel of one."""
        assert isinstance(module, nn.Linear)
        return Geometry("linear", module.in_features, module.out_features, 1, 1)

    def sizes(self, module: nn.Module, kept: Mapping[str, int]) -> Mapping[str, Any]:
        """The numbers of features."""
        return {f"{side}_features": n for side, n in kept.items()}

    def fitted(self, module: nn.Module) -> nn.Module | None:
        """The layer itself."""
        return module

    def formula(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """A linear layer's."""
        m: Any = module
        return F.linear(x, m.weight, m.bias)

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """All inputs as rows."""
        x = first(args, kwargs)
        return x.reshape(-1, x.shape[-1]).float()

    def written(self, module: nn.Module, output: Any, positions: Positions) -> Tensor:
        """All outputs as rows."""
        return output.reshape(-1, output.shape[-1]).float().clone()


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class Convolution(Dense):
    """Convolutions; those in groups lose whole groups, or the same channels of every group, whichever gives more choices."""

    def geometry(self, module: nn.Module, channels: int) -> Geometry:
        """Its kind tells how channels are connected."""
        m: Any = module
        kind = "conv" if m.groups == 1 else "depthwise" if m.groups == m.out_channels == m.in_channels else "grouped"
        kernel, width, stride = math.prod(m.kernel_size), m.kernel_size[0], m.stride[0]
        return Geometry(kind, m.in_channels, m.out_channels, kernel, width, stride, m.groups)

    def carried(self, flow: ChannelFlow, call: Call, module: nn.Module, ids: Ids) -> Ids:
        """None, since a kernel mixes the other axes; but a single filter may run along channels, as in efficient channel attention."""
        filters, before = self.features(module, "in") * self.features(module, "out"), call.shape(call.inputs[0])
        along = [each for each in ids if filters == 1 and all(before[d] == call.result.shape[d] for d in flow.ties.varying(each))]
        flow.fix([each for each in ids if not any(each is a for a in along)], f"{call.name} mixes the places that they were moved to")
        return along

    def tie(
        self, flow: ChannelFlow, name: str, module: nn.Module, numbers: np.ndarray | None, out: np.ndarray
    ) -> None:
        """In groups, tie channels of a group, or those at the same place of every group."""
        groups: Any = module.groups
        if groups == 1:
            return
        outputs = out.reshape(groups, -1)
        if numbers is None:
            if outputs.shape[1] == 1:
                flow.ties.fix(out, f"{name} has an input of fixed size")
            flow.tie_rows(outputs.T)
            return
        inputs = numbers.reshape(groups, -1)
        if by_groups(module):
            flow.tie_rows(np.concatenate([inputs, outputs], 1))
        else:
            flow.tie_rows(inputs.T)
            flow.tie_rows(outputs.T)

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """Where whole groups go, the weight runs over outputs alone."""
        return ("out",) if name == "weight" and by_groups(module) else super().axes(module, name, value)

    def sizes(self, module: nn.Module, kept: Mapping[str, int]) -> Mapping[str, Any]:
        """The numbers of channels."""
        return {f"{side}_channels": n for side, n in kept.items()}

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """In groups, the weight has the inputs of one group only."""
        m: Any = module
        if m.groups == 1:
            return super().sliced(module, indices)
        sizes = dict(self.sizes(module, {side: len(index) for side, index in indices.items()}))
        within = dict(indices)
        if by_groups(module):
            sizes["groups"] = len(indices["out"]) * m.groups // m.out_channels if "out" in indices else m.groups
        elif "in" in indices:
            within["in"] = indices["in"][: len(indices["in"]) // m.groups]  # those of the first group are those of all
        return cut(module, lambda name, value: self.axes(module, name, value), within, sizes, self.reads)

    def scores(self, module: nn.Module, side: str) -> np.ndarray | None:
        """Weights of grouped convolutions are laid out by outputs."""
        groups: Any = module.groups
        return None if side == "in" and groups > 1 else super().scores(module, side)

    def fitted(self, module: nn.Module) -> nn.Module | None:
        """The layer itself, if it is a plain one of images."""
        plain = isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)
        return module if plain and module.padding_mode == "zeros" else None

    def formula(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """A convolution's of images."""
        m: Any = module
        return F.conv2d(x, m.weight, m.bias, m.stride, m.padding, m.dilation)

    def positions(self, module: nn.Module, name: str, output: Tensor, count: int) -> Positions:
        """Random places of the output."""
        return places(name, output.shape[2], output.shape[3], count)

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """Patches of the input, laid out like the weights."""
        m: Any = module
        (kh, kw), (sh, sw), (dh, dw), (ph, pw) = m.kernel_size, m.stride, m.dilation, m.padding
        x = F.pad(first(args, kwargs), (pw, pw, ph, ph))
        patches = []
        for r, c in positions or ():
            top, left = r * sh, c * sw
            patches.append(x[:, :, top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw].flatten(1))
        return torch.cat(patches).float()

    def written(self, module: nn.Module, output: Any, positions: Positions) -> Tensor:
        """The outputs at those places."""
        return torch.cat([output[:, :, r, c] for r, c in positions or ()]).float()


def by_groups(module: nn.Module) -> bool:
    """Whether a convolution shrinks by whole groups, so that its weights grow with the outputs alone."""
    m: Any = module
    return m.groups > 1 and m.groups >= m.in_channels // m.groups
