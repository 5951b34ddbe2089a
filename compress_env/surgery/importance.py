"""How much each channel of a group matters, from the weights alone."""

from __future__ import annotations

import numpy as np
from torch import nn


def channel_importance(modules: dict[str, nn.Module], members, size: int) -> np.ndarray:
    """Scores `(size,)`: the L1 norm of a channel's filters times |scale| / deviation of the normalisation behind them.

    Summed over all layers that produce the channel, each weighed to mean 1, so that no layer of a residual stage drowns the others.
    The norms and filters of Li et al. 2017 (filters) and Liu et al. 2017 (scales), multiplied as in the network itself.
    """
    score = np.zeros(size)
    norms = [m for m in members if isinstance(modules[m.layer], nn.modules.batchnorm._BatchNorm)]
    for i, member in enumerate(members):
        module = modules[member.layer]
        if member.side != "out" or isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.PReLU)):
            continue
        own = module.weight.detach().abs().flatten(1).sum(1).double().cpu().numpy()[member.position]
        follower = next((n for n in norms if _follows(n.layer, member.layer, members[i + 1 :], modules)), None)
        if follower is not None:
            norm = modules[follower.layer]
            if norm.affine and norm.track_running_stats:
                gain = (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).detach().double().cpu().numpy()
                own = own * gain[member.position]
        total = np.bincount(member.channel, weights=own, minlength=size)
        score += total / max(total.mean(), 1e-12)
    return score


def _follows(norm: str, layer: str, later, modules) -> bool:
    """Whether `norm` is the next member after `layer`; members are in the order of computation."""
    following = next((m for m in later if m.layer != layer), None)
    return following is not None and following.layer == norm
