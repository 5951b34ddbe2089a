"""Kinds of layers and of functions, by what they do to channels."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
DENSE = (*CONVOLUTIONS, nn.Linear)
ACTIVATIONS = tuple(
    getattr(nn, n) for n in nn.modules.activation.__all__ if n not in ("MultiheadAttention", "PReLU", "GLU")
)
POOLS = tuple(getattr(nn, n) for n in nn.modules.pooling.__all__ if "Unpool" not in n)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
PADDINGS = tuple(getattr(nn, n) for n in nn.modules.padding.__all__)
SAME_CHANNELS = (*ACTIVATIONS, *DROPOUTS, nn.Identity)
SAME_AXIS = (*POOLS, *PADDINGS, nn.Upsample)
MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)

ELEMENTWISE = frozenset(
    "add iadd sub isub mul imul truediv itruediv div divide multiply subtract maximum minimum pow neg abs sqrt rsqrt square exp "
    "log log1p erf sin cos clamp clamp_min clamp_max reciprocal relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh "
    "leaky_relu elu selu celu mish softplus softsign logsigmoid softmax log_softmax dropout dropout1d dropout2d "
    "alpha_dropout feature_dropout normalize float to type type_as contiguous clone detach masked_fill where lerp add_ sub_ mul_ "
    "div_ relu_ clamp_ sigmoid_ _assert copy_ rsub addcmul gt lt ge le stochastic_depth drop_path".split()
)
MOVING = frozenset(
    "view reshape flatten transpose permute movedim moveaxis swapaxes swapdims squeeze unsqueeze expand expand_as repeat tile "
    "unflatten pixel_shuffle pixel_unshuffle channel_shuffle roll flip narrow t view_as reshape_as ravel broadcast_to".split()
)
SIZED = frozenset("view reshape expand unflatten broadcast_to".split())
REDUCING = frozenset("mean sum amax amin std var norm logsumexp prod".split())
SAME_AXIS_FUNCTIONS = frozenset(
    getattr(F, n) for n in "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool2d interpolate upsample".split()
)  # fmt: skip
