"""How much each channel of a group matters, from the weights alone; `reconstruction` is better where there are images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor, fx, nn

from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Member, Ranking
from compress_env.surgery.rules import rule_of

NEEDS_INPUTS = False


def rank(teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor | None = None) -> Ranking:
    """Rank the channels of each group of `graph` by their weights in `teacher`, as `trace` does by default."""
    modules = dict(teacher.named_modules())
    scores = {g.name: channel_scores(modules, g.members, g.size) for g in graph.groups.values()}
    return Ranking("magnitude", {name: np.argsort(-own, kind="stable") for name, own in scores.items()})


def channel_scores(modules: Mapping[str, nn.Module], members: Iterable[Member], size: int) -> np.ndarray:
    """Scores `(size,)`: the squared L2 norm of all weights that produce or read a channel (Fang et al., CVPR 2023).

    Summed over the layers, each weighed to mean 1, so that no layer of a residual stage drowns the others.
    """
    score = np.zeros(size)
    for member in members:
        module = modules.get(member.layer)
        norms = None if module is None else rule_of(module).scores(module, member.side)
        if norms is None:
            continue
        total = np.bincount(member.channel, weights=norms[member.position], minlength=size)
        score += total / max(total.mean(), 1e-12)
    return score
