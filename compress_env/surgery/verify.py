"""The last word on a graph: students are built and run, and whatever does not work is left alone, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress_env.surgery.build import build_student
from compress_env.surgery.call import tensors
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.measure import shared_copy
from compress_env.surgery.plan import Plan

ROUNDS = 3
TOLERANCE = 1e-4
"""Difference of outputs, as a share of the largest, up to which they are taken for rounding."""
Build = Callable[[dict[str, str], dict[str, str]], LayerGraph]


class NotRebuilt(Exception):
    """Without any change, the network that is built is not valid; `layer` names where, if that is known."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(reason)
        self.layer = layer


def verified(model: nn.Module, build: Build, examples: tuple[Tensor, ...]) -> LayerGraph:
    """The graph of `build(frozen layers, blocks to leave out)` with which every student that was tried is valid.

    Tried are all blocks and groups at once, then random halves of them. Only if one of these fails are they taken apart to find
    the culprit; so a network that is understood costs a handful of forward passes. Raises NotRebuilt if there is none.
    """
    frozen: dict[str, str] = {}
    without: dict[str, str] = {}
    while True:
        graph = build(frozen, without)
        failing = _failing(model, graph, examples)
        if failing is None:
            break
        plan, reason = failing
        removed, shrunk = _culprit(model, graph, plan, examples)
        for name in removed:
            without[name] = reason
        for name in shrunk:
            frozen[graph.groups[name].layer] = reason
        if not removed and not shrunk:
            raise NotRebuilt(_where(model, graph), reason)
    dear = {name: why for name in graph.blocks if (why := _dearer(graph, name))}
    return build(frozen, {**without, **dear}) if dear else graph


@torch.no_grad()
def check_rebuilt(model: nn.Module, student: fx.GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Raises NotRebuilt if the student of the empty plan gives other outputs than its network, which is not changed.

    Each of the two is run once, on random numbers if the network takes them. A network that is random cannot be compared.
    """
    inputs, expected = _answered(model, examples)
    found = student(*_clones(inputs))
    if _alike(found, expected) or not _same(shared_copy(model)(*_clones(inputs)), expected):
        return
    layer = _different(model, student, inputs)
    raise NotRebuilt(
        layer,
        f"rebuilt without any change, it gives other outputs, by up to {float((found - expected).abs().max()):.2g}; one of its parts "
        "writes to a tensor, or keeps one, that another part reads: return that instead, and give it as an input",
    )


def _answered(model: nn.Module, examples: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs of a network and its outputs: random numbers where it gives finite ones for those, since zeros are often equal."""
    generator = torch.Generator().manual_seed(0)
    noise = tuple(torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in examples)
    try:
        result = shared_copy(model)(*_clones(noise))
        if bool(result.isfinite().all()):
            return noise, result
    except Exception:  # noqa: BLE001 - it may look at them
        pass
    return examples, shared_copy(model)(*_clones(examples))


def _different(model: nn.Module, student: fx.GraphModule, inputs: tuple[Tensor, ...]) -> str:
    """The first layer of the student that gives something else than in the network, or an empty name."""
    names = dict.fromkeys(str(node.target) for node in student.graph.nodes if node.op == "call_module")
    gave: list[dict[str, list[Tensor]]] = []
    for network in (shared_copy(model), shared_copy(student)):
        gave.append({name: [] for name in names})
        for name, own in gave[-1].items():
            module = dict(network.named_modules()).get(name)
            if module is not None:
                module.register_forward_hook(lambda *called, own=own: own.extend(t.clone() for t in tensors(called[-1])))
        network(*_clones(inputs))
    for name in names:
        one, other = gave[0][name], gave[1][name]
        if len(one) != len(other) or not all(map(_alike, one, other)):
            return name
    return ""


def _clones(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies of inputs, which a network may write to."""
    return tuple(x.clone() for x in inputs)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return _same(one, other) or _same(one, other, TOLERANCE * float(other.abs().nan_to_num(0, 0).max()))


def _same(one: Tensor, other: Tensor, difference: float = 0.0) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=difference, equal_nan=True)


def _failing(model: nn.Module, graph: LayerGraph, examples: tuple[Tensor, ...]) -> tuple[Plan, str] | None:
    rng = np.random.default_rng(0)
    blocks = list(graph.blocks)

    def widths(share: np.ndarray | float) -> np.ndarray:
        return graph.allowed(graph.floor + share * (graph.full - graph.floor))

    plans = [graph.canonical(frozenset(), widths(0.0)), graph.canonical(frozenset(blocks), graph.full)]
    for _ in range(ROUNDS):
        half = frozenset(u for u in blocks if rng.random() < 0.5)
        plans.append(graph.canonical(half, widths(rng.random(len(graph.groups)))))
    for plan in plans:
        reason = trial(model, graph, plan, examples)
        if reason:
            return plan, reason
    return None


def _culprit(
    model: nn.Module, graph: LayerGraph, plan: Plan, examples: tuple[Tensor, ...]
) -> tuple[Sequence[str], Sequence[str]]:
    """The smallest part found of a failing plan that still fails: blocks and groups."""

    def fails(parts: list[tuple[str, str]]) -> bool:
        removed = [name for kind, name in parts if kind == "block"]
        shrunk = {name for kind, name in parts if kind == "group"}
        return (
            trial(model, graph, Plan.of(removed, {g: w for g, w in plan.widths if g in shrunk}), examples) is not None
        )

    parts = [("block", u) for u in plan.removed] + [("group", g) for g, _ in plan.widths]
    size = len(parts) // 2
    while size:  # leave out what is not needed to fail, in ever smaller pieces (Zeller's delta debugging)
        start = 0
        while start < len(parts):
            fewer = parts[:start] + parts[start + size :]
            if fewer and fails(fewer):
                parts = fewer
            else:
                start += size
        size //= 2
    groups = [name for kind, name in parts if kind == "group"]
    blocks = [name for kind, name in parts if kind == "block"]
    return (blocks, []) if blocks else ([], groups)


def _where(model: nn.Module, graph: LayerGraph) -> str:
    """The first layer that has other parameters than predicted, or an empty name."""
    try:
        student = build_student(model, graph, Plan())
    except Exception:  # noqa: BLE001 - the reason is told anyway
        return ""
    shared = {layer for readers in graph.shared.values() for layer, _ in readers}
    modules = dict(student.named_modules())
    for name, predicted in graph.view(frozenset()).layer_parameters(graph.full).items():
        module = modules.get(name)
        if (
            module is not None
            and name not in shared
            and sum(p.numel() for p in module.parameters()) != round(predicted)
        ):
            return name
    return ""


def trial(model: nn.Module, graph: LayerGraph, plan: Plan, examples: tuple[Tensor, ...]) -> str | None:
    """Why a student of this plan is not valid, or None: it must run, keep the output's shape and have the predicted parameters."""
    try:
        student = build_student(model, graph, plan)
        with torch.no_grad():
            shape = tuple(student.forward(*(torch.cat([x, x[:1]]) for x in examples)).shape)
    except Exception as error:  # noqa: BLE001 - whatever the network raises is the reason to leave the layer alone
        message = (str(error).splitlines() or [""])[0][:120]
        return f"the network does not run without it ({type(error).__name__}: {message})"
    batch, *rest = next(n for n in graph.fx_graph.nodes if n.name == graph.output).meta["shape"]
    expected = (batch * 3 // 2, *rest)  # as many examples as were not seen when the network was traced
    if shape != expected:
        return f"the output would have shape {shape} instead of {expected}"
    counted = sum(p.numel() for p in student.parameters())
    predicted = graph.view(plan.switched).parameters(graph.widths(plan))
    if counted != round(float(predicted)):
        return f"{predicted:.0f} parameters expected, {counted} built"
    return None


def _dearer(graph: LayerGraph, block: str) -> str | None:
    """Why the network would cost more without the block, or None: a repaired layer may have to take a larger input."""
    whole, without = graph.view(frozenset()), graph.view(frozenset([block]))
    for cost in ("macs", "parameters"):
        if getattr(without, cost)(graph.full) > getattr(whole, cost)(graph.full) * (1 + 1e-12):
            return "the layer behind it would cost more than it saves"
    return None
