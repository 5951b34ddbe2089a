"""`build_student`: a plan made real, as a plain and physically smaller PyTorch module with the teacher's weights."""

from __future__ import annotations

import copy
import operator

import numpy as np
import torch
import torch_pruning as tp
from torch import fx, nn

from compress_env.surgery.graph import LayerGraph, Reduced
from compress_env.surgery.plan import StudentPlan

_PRUNERS = tp.DependencyGraph()
_OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul}
"""Removal makes tensors shared that were not; an operation in place would then change what another one reads."""


def build_student(teacher: nn.Module, graph: LayerGraph, plan: StudentPlan) -> fx.GraphModule:
    """A new module in evaluation mode with the plan applied to the teacher's weights; the teacher is not changed.

    Inputs and outputs are the teacher's; names in the state dict too. Nothing is shared with the teacher. The empty plan gives
    the teacher's outputs bit for bit. Raises InvalidPlan if the plan does not belong to `graph`.
    """
    graph.check(plan)
    reduced = graph.reduce(frozenset(plan.removed))
    sides = feature_masks(graph, plan)
    parts: dict[str, nn.Module | torch.Tensor] = {}
    alive = {op.name for op in reduced.ops}
    for node in graph.fx_graph.nodes:
        if node.name in alive and node.op in ("call_module", "get_attr") and node.target not in parts:
            parts[node.target] = _part(teacher, node)
    for unit, layer in repairs(graph, reduced):
        _repair(parts[layer], teacher, graph, unit)
    for name, module in parts.items():
        if isinstance(module, nn.Module):
            _shrink(module, sides.get((name, "out")), sides.get((name, "in")))
            if hasattr(module, "inplace"):
                module.inplace = False
    return fx.GraphModule(parts, _rewire(graph, reduced, alive), class_name=f"Student{type(teacher).__name__}").eval()


def _part(teacher: nn.Module, node: fx.Node) -> nn.Module | torch.Tensor:
    if node.op == "call_module":
        return copy.deepcopy(teacher.get_submodule(node.target))
    owner, _, attribute = node.target.rpartition(".")
    value = getattr(teacher.get_submodule(owner), attribute)
    return copy.deepcopy(value) if isinstance(value, nn.Parameter) else value.detach().clone()


def feature_masks(graph: LayerGraph, plan: StudentPlan) -> dict[tuple[str, str], np.ndarray]:
    """For each side `(layer, "in" or "out")` that loses features under the plan, the mask of those that stay."""
    reduced = graph.reduce(frozenset(plan.removed))
    kept = {g.name: g.kept(int(w)) for g, w in zip(graph.groups.values(), graph.widths(plan))}
    masks: dict[tuple[str, str], np.ndarray] = {}
    for group in graph.groups.values():
        source, mask = group.name, kept[group.name]
        while source in reduced.sources:  # the group's channels are gone; those before them take their place
            channels = reduced.sources[source]
            if not channels.parts:
                mask = np.ones(channels.fixed, bool)
                break
            source = channels.parts[0][0]
            mask = kept[source]
        for member in group.members:
            repaired = len(mask) != group.size
            if repaired:
                repeats = len(member.position) // group.size
                features, own = len(mask) * repeats, np.repeat(mask, repeats)
                position = np.arange(features)
            else:
                features, position, own = None, member.position, mask[member.channel]
            if own.all():
                continue
            key = (member.layer, member.side)
            if features is None:
                layer = graph.layers[member.layer]
                features = layer.channels_out if member.side == "out" else layer.channels_in
            full = masks.setdefault(key, np.ones(features, bool))
            full[position] = own
    return masks


def _shrink(module: nn.Module, outputs: np.ndarray | None, inputs: np.ndarray | None) -> None:
    """Cut the masked features off, in place, with torch-pruning's rule for this kind of layer."""
    if outputs is None and inputs is None:
        return
    pruner = _PRUNERS.get_pruner_of_module(module)
    if outputs is not None:
        pruner.prune_out_channels(module, np.flatnonzero(~outputs).tolist())
    if inputs is not None:
        pruner.prune_in_channels(module, np.flatnonzero(~inputs).tolist())


def repairs(graph: LayerGraph, reduced: Reduced) -> list[tuple[str, str]]:
    """Pairs of a removed unit and a layer that has to take the unit's input; later units first, so that repairs add up."""
    present = {layer.name for layer in reduced.layers}
    pairs, consumers = [], {}
    for name, unit in reversed(graph.units.items()):
        if unit.kind != "same-shape" and unit.fold is None or name not in reduced.removed:
            continue
        members = {m.layer for m in graph.groups[unit.group].members if m.side == "in"}
        behind = set().union(*(consumers.get(layer, {layer}) for layer in members))
        consumers[unit.layers[0]] = behind
        if unit.fold:
            pairs += [(name, layer) for layer in sorted(behind & present)]
    return pairs


@torch.no_grad()
def _repair(layer: nn.Module, teacher: nn.Module, graph: LayerGraph, unit: str) -> None:
    """Let `layer` take the input of the removed unit: its weights times the unit's linear part (filters summed over the kernel).

    What the non-linearity between them did is left to the least-squares refit and to distillation.
    """
    removed = teacher.get_submodule(graph.units[unit].fold)
    linear = removed.weight.flatten(2).sum(2) if removed.weight.dim() > 2 else removed.weight
    for name in graph.units[unit].layers[1:]:
        norm = teacher.get_submodule(name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine and norm.track_running_stats:
            linear = linear * (norm.weight / (norm.running_var + norm.eps).sqrt()).unsqueeze(1)
    weight = layer.weight
    split = weight.reshape(weight.shape[0], linear.shape[0], -1)
    merged = torch.einsum("ocr,ci->oir", split, linear)
    if weight.dim() > 2:
        layer.weight = nn.Parameter(merged.reshape(weight.shape[0], linear.shape[1], *weight.shape[2:]))
        layer.in_channels = linear.shape[1]
    else:
        layer.weight = nn.Parameter(merged.flatten(1))
        layer.in_features = layer.weight.shape[1]


def _rewire(graph: LayerGraph, reduced: Reduced, alive: set[str]) -> fx.Graph:
    """The teacher's graph without dead nodes, users of removed units reading what replaces them."""
    new, copies = fx.Graph(), {}
    for node in graph.fx_graph.nodes:
        if node.op == "output":
            new.output(copies[reduced.resolve(graph.output)])
        elif node.name in alive or node.op == "placeholder":
            copy_of = new.node_copy(node, lambda n: copies[reduced.resolve(n.name)])
            if copy_of.target in _OUT_OF_PLACE:
                copy_of.target = _OUT_OF_PLACE[copy_of.target]
            copies[node.name] = copy_of
    return new
