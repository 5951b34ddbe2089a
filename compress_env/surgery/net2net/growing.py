"""A network as one that may grow: with an identity at every place that a plan can insert, and groups that can be wider."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from torch import Tensor, fx, nn

from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.net2net.deepen import Place, inserted, places
from compress_env.surgery.net2net.preserved import NotPreserved
from compress_env.surgery.net2net.widen import widen
from compress_env.surgery.plan import Plan
from compress_env.surgery.rules import rule_of


def growing(
    module: nn.Module, graph: LayerGraph, retrace: Callable[[nn.Module], LayerGraph], growth: float, shrinks: bool, inputs: Tensor
) -> tuple[fx.GraphModule, LayerGraph]:
    """A network that holds every identity that a plan may insert, and its graph, whose empty plan is the network as it came.

    Args:
        module: The network, in evaluation mode; it is not changed.
        graph: Its layer graph.
        retrace: Gives the layer graph of another network, with the same settings.
        growth: How many times its channels a group may have.
        shrinks: Whether blocks of the network itself may go, and groups may have fewer channels than they came with.
        inputs: Inputs `(batch, ...)` on which normalisations take their statistics.
    """
    normalised = any(rule_of(m).keeps_statistics(m) for m in module.modules())
    chosen = {_name(graph, place): place for place in places(module, graph).values()}
    while True:
        network = build_student(module, graph, Plan())
        for name, place in chosen.items():
            inserted(network, place, place.kinds[0], name, normalised, inputs)
        larger = retrace(network)
        optional = {b.name for b in larger.blocks.values() if all(_within(layer, chosen) for layer in b.layers)}
        missing = [name for name in chosen if not any(_within(layer, [name]) for b in optional for layer in larger.blocks[b].layers)]
        if not missing:
            break
        for name in missing:  # what cannot be left out again is not inserted
            del chosen[name]
    kept = {name: block for name, block in larger.blocks.items() if shrinks or name in optional}
    fixed = {g.name for g in larger.groups.values() if not _copies(network, larger, g.name)}
    groups = {}
    for name, g in larger.groups.items():
        ceiling = g.size if name in fixed else int(g.size * growth) // g.step * g.step
        groups[name] = replace(g, floor=g.floor if shrinks else g.size, ceiling=ceiling)
    return network, replace(larger, blocks=kept, groups=groups, optional=frozenset(optional))


def _copies(network: nn.Module, graph: LayerGraph, group: str) -> bool:
    """Whether a group can be wider without a change of the outputs."""
    try:
        widen(network, graph, group, graph.groups[group].size + graph.groups[group].step)
    except NotPreserved:
        return False
    return True


def _name(graph: LayerGraph, place: Place) -> str:
    """A name for what is inserted, beside the layer in front of it."""
    node = next(n for n in graph.fx_graph.nodes if n.name == place.name)
    before = node
    while before.op != "call_module" and before.all_input_nodes:
        before = before.all_input_nodes[0]
    parent = str(before.target).rpartition(".")[0] if before.op == "call_module" else ""
    return f"{parent}.deeper_{place.name}" if parent else f"deeper_{place.name}"


def _within(layer: str, names: Collection[str]) -> bool:
    return any(layer.startswith(f"{name}.") for name in names)
