"""Products of two tensors: matrix products and fused attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress_env.surgery.call import Call, Ids
from compress_env.surgery.channel_ids import respread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.joining import flattened
from compress_env.surgery.rules.registry import register_function


@register_function("matmul", "bmm")
def follow_product(flow: ChannelFlow, call: Call) -> Any:
    """Channels along a contracted axis are tied to each other; where they run over heads too, heads go whole."""
    a = call.argument(0, "input")
    if len(call.inputs) != 2 or a not in call.inputs:
        return flow.opaque(call)
    b = next(x for x in call.inputs if x is not a)  # whatever it is called, and wherever it is given
    left, right = call.shape(a), call.shape(b)
    if len(left) < 2 or len(right) < 2:
        return flow.opaque(call, f"{call.node.name} multiplies vectors")
    contracted, rest = [], []
    for x, shape, axis in ((a, left, len(left) - 1), (b, right, len(right) - 2)):
        own: Ids = []
        for each in call.ids[x]:
            axes = flow.ties.varying(each)
            if axis in axes and len(axes) > 1:
                flow.ties.tie_along(each, [axis])
            elif axis in axes:
                contracted.append((x, each, axis))
                continue
            own.append(respread(each, flattened(shape, axis)))
        rest.append((own, flattened(shape, axis)))
    if len(contracted) == 2 and contracted[0][0] is not contracted[1][0]:
        one, other = (flow.ties.vector(each, axis) for _, each, axis in contracted)
        flow.ties.unite(one, other)
    else:
        flow.fix(
            [each for _, each, _ in contracted], f"{call.node.name} multiplies it with a tensor of fixed size"
        )
    out = flow.combine(rest, call.result.shape)
    flow.products[call.node] = [*out, *[each for _, each, _ in contracted[:1]]]
    return out


@register_function("scaled_dot_product_attention")
def follow_attention(flow: ChannelFlow, call: Call) -> Any:
    """Fused attention on `(..., heads, tokens, size)`: heads go whole."""
    rest: list[tuple[list[Tensor], tuple[int, ...]]] = []
    own = list(dict.fromkeys(call.argument(i, name) for i, name in enumerate(("query", "key", "value"))))
    for x in own:
        shape = call.shape(x)
        for each in call.ids[x]:
            if flow.ties.varying(each)[-1:] == [len(shape) - 1]:
                if len(flow.ties.varying(each)) == 1:
                    flow.fix([each], f"{call.node.name} has one head")
                flow.ties.tie_along(each, [len(shape) - 1])
        flat = (*shape[:-2], 1, 1)
        rest.append(([respread(each, flat) for each in call.ids[x]], flat))
    rest += [([], (*call.shape(x)[:-2], 1, 1)) for x in call.inputs if x not in own]
    out = flow.combine(rest, call.result.shape)
    flow.products[call.node] = out
    return out
