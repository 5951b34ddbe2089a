"""Concatenation and stacking: the channels of several tensors one behind the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress_env.surgery.call import Call, Ids
from compress_env.surgery.channel_ids import respread, spread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import along
from compress_env.surgery.rules.registry import register_function


@register_function("cat", "concat", "concatenate", "stack")
def follow_join(flow: ChannelFlow, call: Call) -> Ids:
    """Along the axis that is joined, ids are joined; along others, they meet."""
    parts: Any = call.argument(0, "tensors")
    result, stacked = call.result, call.name == "stack"
    dim = along(call, 1, 0) % result.dim()
    shapes = [call.shape(p) for p in parts]
    ids = [list(call.ids[p]) for p in parts]
    if stacked:
        shapes = [(*s[:dim], 1, *s[dim:]) for s in shapes]
        ids = [[each.unsqueeze(dim) for each in own] for own in ids]
    joined: list[np.ndarray | None] = []
    across = []
    for own, shape in zip(ids, shapes):
        numbers = None
        for each in own:
            axes = flow.ties.varying(each)
            if axes == [dim]:
                numbers = flow.ties.vector(each, dim)
            elif axes:
                flow.ties.tie_along(each, [dim])
        if numbers is None and shape[dim] == 1:
            single = [each for each in own if not flow.ties.varying(each)]
            numbers = single[0].flatten()[:1].numpy() if single else None
        joined.append(numbers)
        across.append([each for each in own if set(flow.ties.varying(each)) - {dim}])
    flat = [flattened(shape, dim) for shape in shapes]
    met = flow.combine(
        [([respread(e, s) for e in own], s) for own, s in zip(across, flat)], flattened(tuple(result.shape), dim)
    )
    out = [respread(each, tuple(result.shape)) for each in met]
    if any(n is not None for n in joined):
        known = []
        for numbers, shape in zip(joined, shapes):
            if numbers is None:
                numbers = flow.ties.fresh(shape[dim])
                flow.ties.fix(numbers, "it is joined with a tensor of fixed size")
            known.append(numbers)
        out.append(spread(np.concatenate(known), tuple(result.shape), dim))
    return out


def flattened(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape with a length of 1 along `axis`."""
    return (*shape[:axis], 1, *shape[axis + 1 :])
