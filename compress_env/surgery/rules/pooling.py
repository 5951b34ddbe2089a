"""Pooling, padding and resampling: they change the length of axes that are no channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_env.surgery.call import Call, Ids
from compress_env.surgery.channel_ids import respread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Rule
from compress_env.surgery.rules.registry import register_function, register_rule


@register_rule(nn.Upsample, *(getattr(nn, n) for n in nn.modules.padding.__all__))
class Resampling(Rule):
    """Padding and upsampling."""

    leaf = False

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """The channels are those of its input."""
        return flow.same_axis(call) if isinstance(call.result, Tensor) else super().follow(flow, call, module)


@register_rule(*(getattr(nn, n) for n in nn.modules.pooling.__all__ if "Unpool" not in n))
class Pooling(Resampling):
    """Pooling; whatever it pools, channels stay apart."""

    passes = True


@register_function(
    *(getattr(F, n) for n in "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool2d interpolate upsample".split())
)  # fmt: skip
def follow_pooling(flow: ChannelFlow, call: Call) -> Any:
    """The functions of these modules."""
    return flow.same_axis(call)


@register_function("pad")
def follow_pad(flow: ChannelFlow, call: Call) -> Ids:
    """Padding along an axis of channels adds some that stay."""
    x = call.inputs[0]
    found = []
    for each in call.ids[x]:
        if any(call.shape(x)[d] != call.result.shape[d] for d in flow.ties.varying(each)):
            each = F.pad(each, call.evaluated(call.argument(1, "pad")), value=-1)
            new = flow.ties.fresh(1)
            flow.ties.fix(new, "it is padding")
            found.append(torch.where(each < 0, int(new[0]), each))
        else:
            found.append(respread(each, tuple(call.result.shape)))
    return found
