"""Activations, dropout, arithmetic and reductions: channels that meet are tied, and otherwise stay where they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_env.surgery.call import Call, Ids, axes_of
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Rule, along
from compress_env.surgery.rules.registry import register_function, register_rule

OTHER = ("MultiheadAttention", "PReLU", "GLU")
"""Modules that PyTorch files under activations and that are none."""
RECTIFIERS = (torch.relu, F.relu, F.dropout, "relu")
"""Functions that belong to the layer before them: they go with it when it is removed from a chain."""
IDEMPOTENT = (torch.relu, F.relu, F.relu6, "relu")
"""Functions that change nothing when they are applied once more."""
CASTS = ("to", "type_as")
"""Methods that may be given a tensor for its type."""
PASSING = (*RECTIFIERS, torch.flatten, "flatten")
"""Functions behind which a layer can be repaired when one before them is removed."""


@register_rule(nn.Identity)
class Elementwise(Rule):
    """Modules that leave every number in its place."""

    leaf = False
    passes = True

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """The channels are those of its input."""
        if not isinstance(call.result, Tensor):
            return super().follow(flow, call, module)
        shape = tuple(call.result.shape)
        return flow.combine([(call.ids[call.inputs[0]], shape)], shape)


@register_rule(
    nn.modules.dropout._DropoutNd, *(getattr(nn, n) for n in nn.modules.activation.__all__ if n not in OTHER)
)
class Activation(Elementwise):
    """Activations and dropout."""

    elementwise = True


@register_function(
    *"add sub mul truediv div divide multiply subtract maximum minimum pow neg abs sqrt rsqrt square exp "
    "log log1p erf sin cos clamp clamp_min clamp_max reciprocal relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh "
    "leaky_relu elu selu celu mish softplus softsign logsigmoid softmax log_softmax dropout dropout1d dropout2d "
    "alpha_dropout feature_dropout normalize float to type type_as contiguous clone detach masked_fill where lerp "
    "_assert copy_ rsub addcmul gt lt ge le stochastic_depth drop_path "
    "zeros_like ones_like full_like empty_like rand_like randn_like".split()
)
def follow_elementwise(flow: ChannelFlow, call: Call) -> Any:
    """Operations on numbers in the same place of several tensors."""
    if not isinstance(call.result, Tensor):
        return flow.opaque(call)
    inputs = call.inputs[:1] if call.name in CASTS else call.inputs
    return flow.combine([(call.ids[i], call.shape(i)) for i in inputs], call.result.shape)


@register_function(*"mean sum amax amin std var norm logsumexp prod".split())
def follow_reduction(flow: ChannelFlow, call: Call) -> Any:
    """Axes that are reduced are gone; channels that also run along others are tied along them."""
    if not isinstance(call.result, Tensor):
        return flow.opaque(call)
    where = along(call, 2 if call.name == "norm" else 1)
    if where is None or isinstance(where, bool) or where in ((), []):  # of all numbers; `x.std(False)` has no axis
        return []
    x = call.inputs[0]
    return _reduced(flow, call.ids[x], axes_of(where, len(call.shape(x))), call.result)


@register_function(*"max min median nanmedian mode".split())
def follow_selection(flow: ChannelFlow, call: Call) -> Any:
    """The largest of two tensors, of all, or along an axis with the places: where these are channels, nobody may look at them."""
    x, node = call.inputs[0], call.node
    if isinstance(call.result, Tensor):
        return follow_elementwise(flow, call) if len(call.inputs) > 1 else []
    gone = axes_of(along(call, 1, -1), len(call.shape(x)))
    if any(user.users and user.args[1:] not in ((0,), ("values",)) for user in node.users):
        flow.fix([each for each in call.ids[x] if set(flow.ties.varying(each)) & gone], f"{node.name} tells which channel it chose")
    return tuple(_reduced(flow, call.ids[x], gone, part) for part in call.result)


def _reduced(flow: ChannelFlow, ids: Ids, gone: set[int], result: Tensor) -> Ids:
    """The ids of a result without these axes, or with a length of 1 along them."""
    found: Ids = []
    for each in ids if len(gone) < (ids[0].dim() if ids else 0) else ():
        axes = flow.ties.varying(each)
        if set(axes) & gone:
            if set(axes) <= gone:
                continue
            flow.ties.tie_along(each, gone)
        rank = each.dim()
        for d in sorted(gone, reverse=True):
            each = each.narrow(d, 0, 1) if result.dim() == rank else each.select(d, 0)
        found.append(each)
    return found
