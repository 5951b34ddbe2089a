"""`build_student`: a plan made real, as a plain and physically smaller PyTorch module with the teacher's weights."""

from __future__ import annotations

import copy
import operator

import numpy as np
import torch
from torch import fx, nn

from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.layout import PLAIN
from compress_env.surgery.plan import Plan
from compress_env.surgery.resize import resize
from compress_env.surgery.rules import rule_of
from compress_env.surgery.slicing import sliced
from compress_env.surgery.view import PrunedView

_OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}
"""Removal makes tensors shared that were not; an operation in place would then change what another one reads."""


def build_student(teacher: nn.Module, graph: LayerGraph, plan: Plan) -> fx.GraphModule:
    """A new module in evaluation mode with the plan applied to the teacher's weights; the teacher is not changed.

    Inputs and outputs are the teacher's; names in the state dict too. Nothing is shared with the teacher. The empty plan gives
    the teacher's outputs bit for bit. Raises InvalidPlan if the plan does not belong to `graph`.
    """
    graph.check(plan)
    teacher = graph.holding(teacher)
    reduced = graph.view(frozenset(plan.removed))
    masks: dict[str, dict[str, np.ndarray]] = {}
    for (layer, side), mask in feature_masks(graph, plan).items():
        masks.setdefault(layer, {})[side] = mask
    repaired: dict[str, list[str]] = {}
    for block, layer in repairs(graph, reduced):
        repaired.setdefault(layer, []).append(block)
    parts: dict[str, nn.Module | torch.Tensor] = {}
    alive = reduced.alive_ops
    for node in graph.fx_graph.nodes:
        name = str(node.target)
        if node.name in alive and node.op in ("call_module", "get_attr") and name not in parts:
            if node.op == "get_attr":
                parts[name] = _attribute(teacher, graph, name, masks.get(name, {}))
                continue
            module = teacher.get_submodule(name)
            if name in repaired:
                module = copy.deepcopy(module)
                _repair(module, [_linear_part(teacher, graph, block) for block in repaired[name]])
            parts[name] = sliced(module, masks, name)
    for part in parts.values():
        for module in part.modules() if isinstance(part, nn.Module) else ():
            if hasattr(module, "inplace"):
                module.__dict__["inplace"] = False
    new = _rewire(graph, reduced, alive, graph.widths(plan))
    student = fx.GraphModule(parts, new, class_name=graph.student_name).eval()
    if graph.plain_layout:
        student.meta[PLAIN] = True
    return student


def _attribute(teacher: nn.Module, graph: LayerGraph, name: str, masks: dict[str, np.ndarray]) -> torch.Tensor:
    if name in graph.constants:
        device = next((p.device for p in teacher.parameters()), None)
        return graph.constants[name].to(device, copy=True)
    owner, _, attribute = name.rpartition(".")
    value = getattr(teacher.get_submodule(owner), attribute)
    new = value.detach()
    for axis, mask in masks.items():
        new = new.index_select(int(axis), torch.from_numpy(np.flatnonzero(mask)).to(new.device))
    new = new if masks else new.clone()
    return nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new


def feature_masks(graph: LayerGraph, plan: Plan) -> dict[tuple[str, str], np.ndarray]:
    """For each side `(layer, "in" or "out")` that loses features under the plan, the mask of those that stay."""
    reduced = graph.view(frozenset(plan.removed))
    own = {g.name: g.kept(int(w)) for g, w in zip(graph.groups.values(), graph.widths(plan))}
    masks: dict[tuple[str, str], np.ndarray] = {}
    for group in graph.groups.values():
        mask, resized = _kept(group.name, reduced, own, graph)
        if mask.all() and not resized:
            continue
        for member in group.members:
            repeats = len(member.position) // group.size
            if resized:
                full = np.repeat(mask, repeats)
                if full.all():
                    continue
                masks[member.layer, member.side] = full
            else:
                key = (member.layer, member.side)
                full = masks.setdefault(key, np.ones(graph.features[key], bool))
                full[member.position] = mask[member.channel]
    return masks


def _kept(name: str, reduced: PrunedView, own: dict[str, np.ndarray], graph: LayerGraph) -> tuple[np.ndarray, bool]:
    """Mask of a group's channels that stay, or of those that took their place; and whether they are as many as before."""
    if name not in reduced.sources:
        return own[name], False
    source = reduced.sources[name]
    if not source.channels.parts:
        size = source.channels.fixed
        return np.ones(size, bool), size != graph.groups[name].size
    mask, resized = _kept(source.channels.parts[0][0], reduced, own, graph)
    if source.index is None:
        return mask, True
    return (mask, True) if resized else (mask[source.index], False)


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
            if copy_of.target in _OUT_OF_PLACE:
                copy_of.target = _OUT_OF_PLACE[copy_of.target]
            if node.name in graph.resizes:
                stale |= resize(copy_of, graph.resizes[node.name], lambda c: reduced.size(c, widths), graph)
            copies[node.name] = copy_of
    for node in reversed(new.nodes) if stale else ():  # what computed the sizes before
        if not node.users and node.op in ("call_function", "call_method"):
            new.erase_node(node)
    return new
