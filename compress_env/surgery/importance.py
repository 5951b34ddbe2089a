"""How much each channel of a group matters, from the weights alone."""

from __future__ import annotations

import numpy as np
from torch import nn

from compress_env.surgery.dependencies import BATCH_NORMS, DENSE


def channel_importance(modules: dict[str, nn.Module], members, size: int) -> np.ndarray:
    """Scores `(size,)`: the L1 norm of a channel's filters times |scale| / deviation of the normalisation behind them.

    Summed over all layers that produce the channel, each weighed to mean 1, so that no layer of a residual stage drowns the others.
    The norms and filters of Li et al. 2017 (filters) and Liu et al. 2017 (scales), multiplied as in the network itself.
    """
    score = np.zeros(size)
    norms = [m for m in members if isinstance(modules.get(m.layer), BATCH_NORMS)]
    for i, member in enumerate(members):
        module = modules.get(member.layer)
        if member.side != "out" or not isinstance(module, DENSE):
            continue
        own = module.weight.detach().abs().flatten(1).sum(1).double().cpu().numpy()[member.position]
        follower = next((n for n in norms if _follows(n.layer, member.layer, members[i + 1 :])), None)
        if follower is not None and len(follower.position) == len(member.position):
            norm = modules[follower.layer]
            if norm.affine and norm.track_running_stats:
                gain = (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).detach().double().cpu().numpy()
                own = own * gain[member.position]
        total = np.bincount(member.channel, weights=own, minlength=size)
        score += total / max(total.mean(), 1e-12)
    return score


def _follows(norm: str, layer: str, later) -> bool:
    """Whether `norm` is the next member after `layer`; members are in the order of computation."""
    following = next((m for m in later if m.layer != layer), None)
    return following is not None and following.layer == norm
