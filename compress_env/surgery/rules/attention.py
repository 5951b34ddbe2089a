"""Attention with a projection before and one behind its heads: whole heads go, and the channels that it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from compress_env.surgery.call import Call, Ids
from compress_env.surgery.channel_ids import spread
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Geometry, Positions, Rule, Shape, first
from compress_env.surgery.rules.cutting import Indices, taken
from compress_env.surgery.rules.head_attention import SEPARATE, HeadAttention, mix, projections
from compress_env.surgery.rules.registry import register_rule, rule_of

TENSORS = ("query", "key", "value")
OPTIONS: Mapping[str, Any] = {
    "key_padding_mask": None, "need_weights": True, "attn_mask": None, "average_attn_weights": True, "is_causal": False,
}  # fmt: skip
"""The other arguments of `nn.MultiheadAttention.forward`, in order, with their defaults."""


class Attention(Rule):
    """The family. "values": the numbers that all heads give, which the projection behind them reads; "heads": one for each head."""

    sides = ("in", "values", "heads", "out")
    produces = ("values", "out")
    reads = ("in", "values")

    def heads(self, module: nn.Module) -> tuple[int, int]:
        """Number of heads, and of numbers that each gives."""
        m: Any = module
        return m.num_heads, self.projection(module).in_features // m.num_heads

    def packed(self, module: nn.Module) -> Tensor:
        """The weights `(3 * values, in)` of queries, keys and values."""
        raise NotImplementedError(f"{type(self).__name__} does not say where its weights are")

    def projection(self, module: nn.Module) -> nn.Linear:
        """The projection behind the heads."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its heads are projected with")

    def note(self, flow: ChannelFlow, name: str, module: nn.Module, numbers: np.ndarray | None) -> np.ndarray:
        """Note the sides of a layer that reads these channels; returns those that it writes."""
        count, size = self.heads(module)
        flow.side(name, "in", numbers)
        if (name, "heads") not in flow.sides:
            ids = flow.ties.fresh(count)
            flow.side(name, "values", np.repeat(ids, size))
            flow.side(name, "heads", ids)
        return flow.made(name, "out", self.projection(module).out_features)

    def geometry(self, module: nn.Module, channels: int) -> Geometry:
        """Channels that it reads and writes."""
        return Geometry("attention", self.packed(module).shape[1], self.projection(module).out_features, 1, 1)

    def features(self, module: nn.Module, side: str) -> int:
        """Of "values", numbers of all heads."""
        count, size = self.heads(module)
        return {"values": count * size, "heads": count}.get(side) or super().features(module, side)

    def channel_axis(self) -> int:
        """The last axis."""
        return -1

    def scores(self, module: nn.Module, side: str) -> np.ndarray | None:
        """Of a head, the weights that make its queries, keys and values, and those that read what it gives."""
        before = self.packed(module).detach().square().double()
        behind = self.projection(module).weight.detach().square().double()
        if side == "values":
            return (before.sum(1).view(3, -1).sum(0) + behind.sum(0)).cpu().numpy()
        return {"in": before.sum(0).cpu().numpy(), "out": behind.sum(1).cpu().numpy()}.get(side)

    def fitted(self, module: nn.Module) -> nn.Module | None:
        """The projection behind the heads."""
        return self.projection(module)

    def weight(self, module: nn.Module, side: str) -> Tensor:
        """The weights of one of the two projections."""
        return (self.packed(module) if side == "in" else self.projection(module).weight).unsqueeze(2)

    def parts(self, module: nn.Module, tokens: float, total: float) -> Sequence[tuple[float, tuple[str, ...]]]:
        """Multiply-accumulates of the two projections of so many tokens, and the rest, which grows with the heads alone."""
        before, behind = tokens * self.packed(module).numel(), tokens * self.projection(module).weight.numel()
        return [(before, ("in", "values")), (behind, ("values", "out")), (total - before - behind, ("heads",))]

    def heads_left(self, module: nn.Module, indices: Indices) -> int:
        """Number of heads that stay."""
        return len(indices["heads"]) if "heads" in indices else self.heads(module)[0]


@register_rule(nn.MultiheadAttention, HeadAttention)
class MultiheadAttention(Attention):
    """`nn.MultiheadAttention`; the channels that it reads and writes go only where one tensor is query, key and value."""

    def packed(self, module: nn.Module) -> Tensor:
        """The weights of the queries, if keys and values have others: then they are not looked at."""
        m: Any = module
        return m.q_proj_weight if m.in_proj_weight is None else m.in_proj_weight

    def projection(self, module: nn.Module) -> nn.Linear:
        """`out_proj`."""
        m: Any = module
        return m.out_proj

    def follow(self, flow: ChannelFlow, call: Call, module: nn.Module) -> Any:
        """Heads go, unless they are given or give something each."""
        options = {
            name: call.evaluated(call.argument(i, name, default)) for i, (name, default) in enumerate(OPTIONS.items(), 3)
        }
        reason = _unsupported(module, options, call.node)
        if reason:
            return flow.opaque(call, f"{call.name} {reason}")
        given: list[fx.Node] = [call.argument(i, name) for i, name in enumerate(TENSORS)]
        x, m = given[0], module
        numbers, rest = flow.channels(call.ids[x], -1, call.shape(x))
        closed = ""
        if options["need_weights"]:
            closed = f"{call.name} gives its attention weights, too"
        elif any(other is not x for other in given):
            closed = f"{call.name} reads keys and values of another tensor"
        elif getattr(m, "in_proj_weight", None) is None:
            closed = f"{call.name} has separate weights for queries, keys and values"
        for other in given if closed else ():
            flow.fix(call.ids[other], closed)
        flow.fix(rest, f"{call.name} mixes the places that they were moved to")
        out = self.note(flow, call.name, module, None if closed else numbers)
        if closed:
            flow.ties.fix(out, closed)
        ids: Ids = [spread(out, tuple(call.result[0].shape), -1)]
        return ids, *([] for _ in call.result[1:])

    def holds(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
        """Whether it does is looked at when it is followed."""
        return True

    def axes(self, module: nn.Module, name: str, value: Tensor) -> tuple[str | None, ...]:
        """Those before the heads run over values, each of three times; the one behind over outputs."""
        known: dict[str, tuple[str | None, ...]] = {
            "in_proj_weight": ("values", "in"), "in_proj_bias": ("values",),
            "out_proj.weight": ("out", "values"), "out_proj.bias": ("out",),
            **dict.fromkeys(SEPARATE, ("values",)),
        }  # fmt: skip
        return known.get(name, ())

    def macs(
        self, module: nn.Module, inputs: Sequence[Shape], total: float
    ) -> Sequence[tuple[float, tuple[str, ...]]]:
        """With separate weights, only the heads can go."""
        m: Any = module
        return (
            [(total, ("heads",))]
            if m.in_proj_weight is None
            else self.parts(module, np.prod(inputs[0][:-1]).item(), total)
        )

    def sliced(self, module: nn.Module, indices: Indices) -> nn.Module:
        """A `HeadAttention`: the layer itself has as many channels in each head as there are channels a head."""
        m: Any = module
        new: Any = HeadAttention()
        new.num_heads, new.dropout, new.batch_first = self.heads_left(module, indices), m.dropout, m.batch_first
        new.training = m.training
        thrice = {"in": indices["in"]} if "in" in indices else {}
        once = dict(thrice)
        if "values" in indices:
            thrice["values"], once["values"] = tripled(indices["values"], m.out_proj.in_features), indices["values"]
        for name in ("in_proj_weight", *SEPARATE, "in_proj_bias"):
            p = getattr(m, name, None)
            kept = once if name in SEPARATE else thrice
            cut = None if p is None else nn.Parameter(taken(p.detach(), self.axes(m, name, p), kept, ("in",)), p.requires_grad)
            new.register_parameter(name, cut)
        new.out_proj = rule_of(m.out_proj).sliced(m.out_proj, around(indices))
        return new

    def scores(self, module: nn.Module, side: str) -> np.ndarray | None:
        """With separate weights, those of queries, keys and values have different numbers of columns."""
        m: Any = module
        if m.in_proj_weight is not None:
            return super().scores(module, side)
        if side != "values":
            return None
        own = sum(w.detach().square().double().sum(1) for w in projections(m))
        return (own + m.out_proj.weight.detach().square().double().sum(0)).cpu().numpy()

    def fitted(self, module: nn.Module) -> nn.Module | None:
        """`out_proj`, where the rest is what `mix` computes."""
        return None if _unsupported(module, OPTIONS, None) else self.projection(module)

    def read(
        self, module: nn.Module, side: str, args: Sequence[Any], kwargs: Mapping[str, Any], positions: Positions
    ) -> Tensor:
        """All tokens, or what the heads give for them."""
        if side == "in":
            x = first(args, kwargs)
        else:
            given = dict(zip((*TENSORS, *OPTIONS), args)) | dict(kwargs)
            used = (*TENSORS, "key_padding_mask", "attn_mask")
            x, _ = mix(module, **{name: given[name] for name in used if name in given}, need_weights=False)
        return x.reshape(-1, x.shape[-1]).float()

    def written(self, module: nn.Module, output: Any, positions: Positions) -> Tensor:
        """All tokens."""
        return output[0].reshape(-1, output[0].shape[-1]).float().clone()


def tripled(values: np.ndarray, count: int) -> np.ndarray:
    """Rows of the projection in front of the heads, which has queries, keys and values one after the other: `count` of each."""
    return np.concatenate([values + i * count for i in range(3)])


def around(indices: Indices) -> dict[str, np.ndarray]:
    """The indices of the projection behind the heads."""
    names = {"in": "values", "out": "out"}
    return {side: indices[own] for side, own in names.items() if own in indices}


def _unsupported(module: Any, options: Mapping[str, Any], node: fx.Node | None) -> str:
    """Why the heads of a layer have to stay, or nothing."""
    if type(module).forward not in (nn.MultiheadAttention.forward, HeadAttention.forward):
        return f"({type(module).__name__}) computes something of its own"
    if getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False):
        return "attends to keys and values that no token gives"
    if options["attn_mask"] is not None and options["attn_mask"].dim() == 3:
        return "has a mask for each head"
    for user in node.users if node is not None and options["need_weights"] else ():
        if getattr(user.target, "__name__", "") != "getitem" or (user.args[1] != 0 and user.users):
            return "gives its attention weights to what comes behind it"
    return ""
