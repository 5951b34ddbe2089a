"""`build_student`: a plan made real, as a plain and physically smaller PyTorch module with the teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Member
from compress_env.surgery.layout import PLAIN
from compress_env.surgery.network import Network
from compress_env.surgery.plan import Plan
from compress_env.surgery.resize import resize
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.cutting import Indices, duplicate, taken
from compress_env.surgery.sharing import held_tensor, tied
from compress_env.surgery.slicing import sliced
from compress_env.surgery.view import PrunedView


def build_student(teacher: nn.Module, graph: LayerGraph, plan: Plan) -> fx.GraphModule:
    """A new module in evaluation mode with the plan applied to the teacher's weights; the teacher is not changed.

    Inputs and outputs are the teacher's; names in the state dict too. Nothing is shared with the teacher. The empty plan gives
    the teacher's outputs bit for bit. All weights may be trained, those too that are frozen in the teacher. Raises InvalidPlan if
    the plan does not belong to `graph`.
    """
    graph.check(plan)
    teacher = graph.holding(teacher)
    reduced = graph.view(plan.switched)
    indices: dict[str, dict[str, np.ndarray]] = {}
    for (layer, side), index in feature_indices(graph, plan).items():
        indices.setdefault(layer, {})[side] = index
    repaired: dict[str, list[str]] = {}
    for block, layer in repairs(graph, reduced):
        repaired.setdefault(layer, []).append(block)
    parts: dict[str, nn.Module | torch.Tensor] = {}
    alive = reduced.alive_ops
    headers: list[str] = []
    for node in graph.fx_graph.nodes:
        name = str(node.target)
        if node.name in alive and node.op in ("call_module", "get_attr") and name not in parts:
            if node.meta["header"]:
                headers.append(name)
                continue
            if node.op == "get_attr":
                parts[name] = _attribute(teacher, graph, name, indices.get(name, {}))
                continue
            module = teacher.get_submodule(name)
            if name in repaired:
                module = duplicate(module)
                _repair(module, [_linear_part(teacher, graph, block) for block in repaired[name]])
            parts[name] = sliced(module, indices, name)
    tied(parts, graph.shared)
    for part in parts.values():
        if hasattr(part, "inplace"):
            part.__dict__["inplace"] = False  # as in the graph, see `out_of_place`
    for name in headers:
        held = held_tensor(parts, name)
        parts.setdefault(name, _attribute(teacher, graph, name, {}).new_empty(0) if held is None else held)
    new = _rewire(graph, reduced, alive, graph.widths(plan))
    student = Network(parts, new, class_name=graph.student_name).eval()
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    if graph.plain_layout:
        student.meta[PLAIN] = True
    return student


def _attribute(teacher: nn.Module, graph: LayerGraph, name: str, indices: Indices) -> torch.Tensor:
    if name in graph.constants:
        value = graph.constants[name].to(next((p.device for p in teacher.parameters()), None))
    else:
        owner, _, attribute = name.rpartition(".")
        value = getattr(teacher.get_submodule(owner), attribute)
    new = taken(value.detach(), [str(axis) for axis in range(value.dim())], indices)
    return nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new


def feature_indices(graph: LayerGraph, plan: Plan) -> dict[tuple[str, str], np.ndarray]:
    """For each side `(layer, "in" or "out")` that has other features under the plan than before, their numbers in the teacher.

    Numbers grow where groups shrink. Where a group grows, the copies of a channel stand behind it.
    """
    return _indices(graph, plan, {group.name: group.members for group in graph.groups.values()})


def row_indices(graph: LayerGraph, plan: Plan) -> dict[tuple[str, str], np.ndarray]:
    """The same for each axis `(layer, "1")` of what a layer reads and gives, other than that of its features."""
    return _indices(graph, plan, {group.name: group.rows for group in graph.groups.values()})


def _indices(graph: LayerGraph, plan: Plan, members: Mapping[str, Sequence[Member]]) -> dict[tuple[str, str], np.ndarray]:
    reduced = graph.view(plan.switched)
    own = {g.name: g.copies(int(w)) for g, w in zip(graph.groups.values(), graph.widths(plan))}
    copies: dict[tuple[str, str], np.ndarray] = {}
    channels: dict[tuple[str, str], np.ndarray] = {}
    for number, group in enumerate(graph.groups.values()):
        of_group, resized = _copies(group.name, reduced, own, graph)
        if (of_group == 1).all() and not resized:
            continue
        for member in members[group.name]:
            key = (member.layer, member.side)
            if resized:
                repeats = len(member.position) // group.size
                features = np.repeat(of_group, repeats)
                if (features != 1).any():
                    copies[key], channels[key] = features, np.repeat(np.arange(len(of_group)), repeats)
                continue
            if key not in copies:
                copies[key], channels[key] = np.ones(graph.features[key], int), np.full(graph.features[key], -1)
            copies[key][member.position] = of_group[member.channel]
            channels[key][member.position] = member.channel + number * graph.full.max()
    return {key: _index(copies[key], channels[key]) for key in copies}


def _index(copies: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The features that are there, each as often as `copies` says; neighbours of one channel, as after flattening, together."""
    if copies.max(initial=0) <= 1:
        return np.flatnonzero(copies)
    ends = np.append(np.flatnonzero(np.diff(channels)) + 1, len(channels))
    starts = np.append(0, ends[:-1])
    runs = [np.tile(np.arange(start, end), copies[start]) for start, end in zip(starts, ends)]
    return np.concatenate(runs)


def _copies(name: str, reduced: PrunedView, own: dict[str, np.ndarray], graph: LayerGraph) -> tuple[np.ndarray, bool]:
    """How often a group's channels are there, or those that took their place; and whether these are others in number."""
    if name not in reduced.sources:
        return own[name], False
    source = reduced.sources[name]
    if not source.channels.parts:
        size = source.channels.fixed
        return np.ones(size, int), size != graph.groups[name].size
    found, resized = _copies(source.channels.parts[0][0], reduced, own, graph)
    if source.index is None:
        return found, True
    return (found, True) if resized else (found[source.index], False)


def repairs(graph: LayerGraph, reduced: PrunedView) -> list[tuple[str, str]]:
    """Pairs of a removed block and a layer that has to take the block's input; later blocks first, so that repairs add up."""
    present = {layer.name for layer in reduced.layers}
    pairs: list[tuple[str, str]] = []
    consumers: dict[str, set[str]] = {}
    for name, block in reversed(list(graph.blocks.items())):
        if not block.sources or name not in reduced.removed:
            continue
        groups = {group for group, _ in block.sources}
        members = {m.layer for g in groups for m in graph.groups[g].members if m.side == "in"} - set(block.layers)
        behind = set[str]().union(*(consumers.get(layer, {layer}) for layer in members))
        consumers[block.layers[0]] = behind
        if block.fold:
            pairs += [(name, layer) for layer in sorted(behind & present)]
    return pairs


@torch.no_grad()
def _linear_part(teacher: nn.Module, graph: LayerGraph, block: str) -> torch.Tensor:
    """The matrix `(out, in)` of a removed block: its filters summed over the kernel, times the normalisation's scale.

    The effect of the non-linearity behind them is left to the least-squares refit and to distillation.
    """
    removed = teacher.get_submodule(graph.blocks[block].fold or "")
    linear = rule_of(removed).linear_part(removed)
    for name in graph.blocks[block].layers[1:]:
        norm = teacher.get_submodule(name)
        scale = rule_of(norm).scale(norm)
        if scale is not None:
            linear = linear * scale.unsqueeze(1)
    return linear


@torch.no_grad()
def _repair(layer: nn.Module, parts: list[torch.Tensor]) -> None:
    """Let `layer` take the input of removed blocks, given as matrices from the last to the first, in place of their output."""
    rule_of(layer).take_input(layer, torch.linalg.multi_dot(parts) if len(parts) > 1 else parts[0])


def _rewire(graph: LayerGraph, reduced: PrunedView, alive: frozenset[str], widths: np.ndarray) -> fx.Graph:
    """The teacher's graph without dead nodes, users of removed blocks reading what replaces them, and sizes as they have become."""
    new = fx.Graph()
    copies: dict[str, fx.Node] = {}
    stale = False
    for node in graph.fx_graph.nodes:
        if node.op == "output":
            new.output(copies[reduced.resolve(graph.output)])
        elif node.name in alive or node.op == "placeholder":
            copy_of = new.node_copy(node, lambda n: copies[reduced.resolve(n.name)])
            if copy_of.op == "call_method" and copy_of.target == "view" and not isinstance(copy_of.args[-1], torch.dtype):
                copy_of.target = "reshape"  # the same numbers, in whatever layout they come
            if node.name in graph.resizes:
                stale |= resize(copy_of, graph.resizes[node.name], lambda c: reduced.size(c, widths), graph)
            copies[node.name] = copy_of
    for node in reversed(new.nodes) if stale else ():  # what computed the sizes before
        if not node.users and node.op in ("call_function", "call_method"):
            new.erase_node(node)
    return new
