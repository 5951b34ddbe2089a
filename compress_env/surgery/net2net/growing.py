"""A network as one that may grow: with an identity at every place that a plan can insert, and groups that can be wider."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from torch import Tensor, fx, nn

from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Block
from compress_env.surgery.net2net.deepen import Place, inserted, places
from compress_env.surgery.net2net.preserved import TOLERANCE, difference, random_inputs
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
        longer = {b for b in optional if _goes_on(larger, larger.blocks[b], chosen)}
        left_out = [layer for b in optional - longer for layer in larger.blocks[b].layers]
        missing = [name for name in chosen if not any(_within(layer, [name]) for layer in left_out)]
        if not missing:
            break
        for name in missing:  # what cannot be left out again by itself is not inserted, or inserted as a branch
            place = chosen.pop(name)
            if "layer" in place.kinds and any(_within(layer, [name]) for b in longer for layer in larger.blocks[b].layers):
                chosen[name] = replace(place, kinds=("block",))
    kept = {name: block for name, block in larger.blocks.items() if shrinks or name in optional}
    fixed = _fixed(network, larger, optional)
    groups = {}
    for name, g in larger.groups.items():
        ceiling = g.size if name in fixed else int(g.size * growth) // g.step * g.step
        groups[name] = replace(g, floor=g.floor if shrinks else g.size, ceiling=ceiling)
    return network, replace(larger, blocks=kept, groups=groups, optional=frozenset(optional))


def _goes_on(graph: LayerGraph, block: Block, inserted: Collection[str]) -> bool:
    """Whether a block holds more than was inserted: something without weights behind it, such as a dropout, would go with it."""
    nodes = {node.name: node for node in graph.fx_graph.nodes}
    first, last = nodes[block.replacement], nodes[block.node]
    if block.kind == "branch":
        return False
    if last.op == "call_module":
        return not _within(str(last.target), inserted)
    before = last.all_input_nodes[0]
    repeated = (last.op, last.target) == (first.op, first.target)
    return not (repeated and before.op == "call_module" and _within(str(before.target), inserted))


def _fixed(network: nn.Module, graph: LayerGraph, optional: set[str]) -> set[str]:
    """Groups that cannot be wider without a change of the outputs, whichever of the optional blocks are there.

    A group is tried with all of them, and with none but the one that it lies in. Between the two, it takes the place of groups behind
    blocks that are not there, so that it is fixed if they are.
    """
    fixed = {group for group in graph.groups if not _copies(network, graph, group)}
    for block in reversed(list(graph.blocks.values())):
        for group, source in block.sources if block.name in optional else ():
            fixed.update(name for name, _ in source.channels.parts if group in fixed)
    for name, own in graph.groups.items():
        others = [block for block in optional if own.layer not in graph.blocks[block].layers]
        if name not in fixed and not _copies(network, graph, name, others):
            fixed.add(name)
    return fixed


def _copies(network: nn.Module, graph: LayerGraph, group: str, without: Collection[str] = ()) -> bool:
    """Whether a group can be wider without a change of the outputs, in the network without some blocks."""
    channels = graph.groups[group].size + graph.groups[group].step
    return _same(network, graph.growing(group, channels), Plan.of(without), Plan.of(without, {group: channels}))


def _same(network: nn.Module, graph: LayerGraph, *plans: Plan) -> bool:
    """Whether the networks of two plans compute the same."""
    first, second = (build_student(network, graph, plan) for plan in plans)
    return difference(first, second, random_inputs(graph, network)) <= TOLERANCE


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
