"""Normalisations: they follow the channels of what they read, with a scale and statistics for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_env.surgery.call import Call
from compress_env.surgery.channel_ids import respread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Geometry, Rule, first
from compress_env.surgery.rules.cutting import Indices
from compress_env.surgery.rules.exchange import exchanged, order
from compress_env.surgery.rules.registry import differs, register_rule


class PerChannel(Rule):
    """The family of layers with a side "out" only, on which every parameter and buffer has a number for each channel."""

    sides = ("out",)
    size_name = "num_features"

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Its channels are those of what it reads."""
        x, shape = call.inputs[0], tuple(call.result.shape)
        numbers, _ = flow.channels(call.ids[x], self.axis(module, shape), shape)
        self.tie(flow, module, flow.side(call.name, "out", numbers))
        return [respread(each, shape) for each in call.ids[x]]

    def axis(self, module: nn.Module, shape: tuple[int, ...]) -> int:
        """The axis of its input that it treats channel by channel."""
        return 1

    def tie(self, flow: ChannelFlow, module: nn.Module, numbers: np.ndarray | None) -> None:
        """Tie channels that need each other."""

    def holds(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
        """If its channels can change places; an activation of its own makes no difference to that."""
        x = first(args, kwargs)
        axis = self.axis(module, tuple(x.shape))
        orders = {"out": order(x.shape[axis], getattr(module, "num_groups", 1))}
        return exchanged(module, self.axes, orders, (x, axis, "out"), (output, axis, "out"))

    def geometry(self, module: nn.Module, channels: int) -> Geometry | None:
        """As many channels out as in."""
        return Geometry("norm", channels, channels)

    def features(self, module: nn.Module, side: str) -> int:
        """The number of channels that it normalises."""
        return getattr(module, self.size_name)

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """The first axis, if there is one for each channel."""
        return ("out",) if value.dim() == 1 and "." not in name else ()

    def sizes(self, module: nn.Module, kept: Mapping[str, int]) -> Mapping[str, Any]:
        """The number of channels."""
        return {self.size_name: kept["out"]}


@register_rule(nn.modules.instancenorm._InstanceNorm)
class InstanceNorm(PerChannel):
    """Instance normalisation."""

    owns_output = False
    vanishes = True

    def inside(self, module: nn.Module) -> bool:
        """It is sliced like any other."""
        return True

    def scale(self, module: nn.Module) -> Tensor | None:
        """Its weights over the deviations that it was trained with."""
        m: Any = module
        if not (m.affine and m.track_running_stats):
            return None
        return m.weight / (m.running_var + m.eps).sqrt()


@register_rule(nn.modules.batchnorm._BatchNorm)
class BatchNorm(InstanceNorm):
    """Batch normalisation."""

    def keeps_statistics(self, module: nn.Module) -> bool:
        """Unless it normalises each batch by its own."""
        return bool(module.track_running_stats)

    def renormalise(self, module: nn.Module, parts: list[Tensor]) -> None:
        """In training mode with momentum 1 that is a single pass over a batch that is whole."""
        m: Any = module
        counts = [x.numel() // x.shape[1] for x in parts]
        whole = differs(module)  # it does something else besides
        if len(parts) == 1 and not whole:
            parts[0] = F.batch_norm(parts[0], m.running_mean, m.running_var, m.weight, m.bias, training=True, momentum=1.0, eps=m.eps)
            m.running_var.mul_((counts[0] - 1) / counts[0])  # it noted the unbiased variance
            return
        means, variances = (m.running_mean.new_zeros(len(parts), *m.running_mean.shape) for _ in range(2))
        for x, mean, variance in zip(parts, means, variances):
            torch.batch_norm_update_stats(x, mean, variance, 1.0)
        share = torch.tensor(counts, dtype=torch.float64, device=means.device).unsqueeze(1)
        biased = variances.double() * ((share - 1) / share)
        share = share / share.sum()
        mean = (share * means).sum(0)
        m.running_mean.copy_(mean)
        m.running_var.copy_((share * (biased + (means - mean).square())).sum(0))
        for i, x in enumerate(parts):
            parts[i] = module(x) if whole else F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)


@register_rule(nn.LayerNorm, nn.RMSNorm)
class LayerNorm(PerChannel):
    """Layer and root-mean-square normalisation of one axis."""

    owns_output = False
    mixes = True

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Over several axes, channels cannot be told apart."""
        shape: Any = module.normalized_shape
        if len(shape) > 1:
            ids = call.ids[call.inputs[0]]
            flow.fix(ids, f"{call.name} normalises over several axes")
            return ids
        return super().follow(flow, call, module)

    def axis(self, module: nn.Module, shape: tuple[int, ...]) -> int:
        """The last one; subclasses called LayerNorm2d normalise the channels of images."""
        size: Any = module.normalized_shape
        return 1 if type(module).__name__.endswith("2d") or shape[-1:] != tuple(size) else -1

    def sizes(self, module: nn.Module, kept: Mapping[str, int]) -> Mapping[str, Any]:
        """The shape that it normalises over."""
        return {"normalized_shape": (kept["out"],)}


@register_rule(nn.GroupNorm)
class GroupNorm(PerChannel):
    """Group normalisation: whole groups go, or the same channels of each, whichever gives more choices."""

    owns_output = False
    mixes = True
    size_name = "num_channels"

    def tie(self, flow: ChannelFlow, module: nn.Module, numbers: np.ndarray | None) -> None:
        """Tie the channels of a group, or those at the same place of every group."""
        if numbers is not None:
            groups: Any = module.num_groups
            table = numbers.reshape(groups, -1)
            flow.tie_rows(table if table.shape[0] > table.shape[1] else table.T)

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """The groups that have channels stay."""
        m: Any = module
        new = super().sliced(module, indices)
        if m.num_groups > m.num_channels // m.num_groups:  # whole groups go
            new.__dict__["num_groups"] = len(indices["out"]) * m.num_groups // m.num_channels
        return new


@register_rule(nn.PReLU)
class PReLU(PerChannel):
    """A rectifier with a slope for each channel, or a single one."""

    leaf = False
    size_name = "num_parameters"

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """With a single slope it is an activation like others."""
        if self.features(module, "out") > 1:
            return super().follow(flow, call, module)
        if not isinstance(call.result, torch.Tensor):
            return flow.opaque(call)
        shape = tuple(call.result.shape)
        return flow.combine([(call.ids[call.inputs[0]], shape)], shape)

    def geometry(self, module: nn.Module, channels: int) -> Geometry | None:
        """With a single slope there are no sides."""
        return super().geometry(module, channels) if self.features(module, "out") > 1 else None
