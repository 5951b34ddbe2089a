"""`trace`: from a teacher to its `LayerGraph`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch

import torch
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import Channels, Group, Layer, LayerGraph, Op
from compress_env.surgery.plan import StudentPlan
from compress_env.surgery.removal import ancestors, find_units
from compress_env.surgery.width import CONVOLUTIONS, NORMS, find_groups

LEAVES = (*CONVOLUTIONS, nn.Linear, *NORMS, nn.GroupNorm, nn.MultiheadAttention, nn.RNNBase)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, LEAVES) or super().is_leaf_module(module, name)


class _Observer(fx.Interpreter):
    """Runs the network once and notes the shape of every tensor and whether it shares memory with an input."""

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
            node.meta["view"] = node.op != "placeholder" and any(
                isinstance(self.env.get(i), Tensor)
                and self.env[i].untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
                for i in node.all_input_nodes
            )
        else:
            node.meta["shape"], node.meta["view"] = None, True
        return result


def trace(teacher: nn.Module, example_input: Tensor, *, keep: Sequence[str] = (), min_width: float = 0.1) -> LayerGraph:
    """What can be removed from `teacher`, what can be shrunk, and what everything costs.

    example_input: `(batch, ...)`, only its shape and type matter. keep: patterns of layer names (`"layer1.*"`) that stay as
    they are. min_width: the smallest share of a group's channels that may stay. The teacher is not changed.
    Raises UserError if the network cannot be traced, with what the tracer said.
    """
    model = copy.deepcopy(teacher).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    device = next(model.parameters()).device
    example = example_input[:1].to(device)
    example = torch.cat([example, example])  # two examples, so that batch and unit dimensions cannot be mistaken
    try:
        fx_graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot trace {type(teacher).__name__}: {error}. Control flow that depends on the data cannot be compressed"
        ) from error
    module = fx.GraphModule(model, fx_graph)
    with torch.no_grad():
        _Observer(module).run(example)
    modules = dict(model.named_modules())
    order = [n.target for n in fx_graph.nodes if n.op == "call_module" and _has_state(modules[n.target])]
    order = list(dict.fromkeys(order))
    groups, left_alone = find_groups(module, example, order)
    for name in [n for n, g in groups.items() if any(_matches(m.layer, keep) for m in g.members if m.side == "out")]:
        left_alone[name] = "kept on request"
        del groups[name]
    groups = {n: _with_floor(g, min_width) for n, g in groups.items()}
    output = next(n for n in fx_graph.nodes if n.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise UserError(
            f"{type(teacher).__name__} returns {type(output).__name__}; a teacher has to return one tensor of logits"
        )
    alive = ancestors(output)

    def describe(groups: dict[str, Group]) -> tuple[dict[str, Layer], dict[str, Op]]:
        return _describe([n for n in fx_graph.nodes if n in alive], modules, groups)

    layers, ops = describe(groups)
    for name, _ in ops[output.name].channels.parts:
        left_alone[name] = "its channels are the network's outputs"
        groups.pop(name, None)
    layers, ops = describe(groups)

    def graph(groups, units=None) -> LayerGraph:
        return LayerGraph(fx_graph, ops, output.name, layers, units or {}, groups, left_alone, tuple(example.shape[1:]))

    for name in list(groups):
        reason = _trial(model, graph(groups), StudentPlan.of((), {name: max(1, groups[name].size // 2)}), example)
        if reason:
            left_alone[name] = reason
            del groups[name]
    layers, ops = describe(groups)
    units, fixed = find_units(fx_graph, ops, layers, groups, modules)
    units = {n: u for n, u in units.items() if not any(_matches(name, keep) for name in u.layers)}
    for name in list(units):
        reason = _trial(model, graph(groups, units), StudentPlan.of([name]), example) or _dearer(
            graph(groups, units), name
        )
        if reason:
            fixed[name] = reason
            del units[name]
    for name, reason in fixed.items():
        left_alone.setdefault(name, f"not removable: {reason}")
    return graph(groups, units)


def _trial(model: nn.Module, graph: LayerGraph, plan: StudentPlan, example: Tensor) -> str | None:
    """Why a student of this plan is not valid, or None: it must run, keep the output's shape and have the predicted parameters."""
    try:
        student = build_student(model, graph, plan)
        with torch.no_grad():
            shape = tuple(student(example).shape)
    except Exception as error:  # noqa: BLE001 - whatever the network raises is the reason to leave the layer alone
        return f"the network does not run without it ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    expected = next(n for n in graph.fx_graph.nodes if n.op == "output").args[0].meta["shape"]
    if shape != expected:
        return f"the output would have shape {shape} instead of {expected}"
    counted = sum(p.numel() for p in student.parameters())
    predicted = graph.reduce(frozenset(plan.removed)).parameters(graph.widths(plan))
    if counted != predicted:
        return f"{predicted:.0f} parameters expected, {counted} built"
    return None


def _dearer(graph: LayerGraph, unit: str) -> str | None:
    """Why the network would cost more without the unit, or None: a repaired layer may have to take a larger input."""
    whole, without = graph.reduce(frozenset()), graph.reduce(frozenset([unit]))
    if without.macs(graph.full) > whole.macs(graph.full) or without.parameters(graph.full) > whole.parameters(
        graph.full
    ):
        return "the layer behind it would cost more than it saves"
    return None


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, p) for p in patterns)


def _with_floor(group: Group, min_width: float) -> Group:
    floor = min(group.size, max(1, round(min_width * group.size)))
    return Group(group.name, group.size, group.members, group.importance, floor)


def _sides(groups: dict[str, Group]) -> dict[tuple[str, str], list[tuple[str, int, int]]]:
    """For each side of a layer, its parts `(group, repeats, first position)`, in the order of positions."""
    sides: dict[tuple[str, str], list] = {}
    for group in groups.values():
        for m in group.members:
            sides.setdefault((m.layer, m.side), []).append(
                (group.name, len(m.position) // group.size, int(m.position[0]))
            )
    for parts in sides.values():
        parts.sort(key=lambda p: p[2])
    return sides


def _describe(nodes: list[fx.Node], modules: dict[str, nn.Module], groups: dict[str, Group]):
    sides = _sides(groups)
    layers: dict[str, Layer] = {}
    ops: dict[str, Op] = {}

    def side(layer: str, which: str, total: int) -> Channels:
        parts = tuple((g, r) for g, r, _ in sides.get((layer, which), ()))
        return Channels(parts, total - sum(r * groups[g].size for g, r in parts))

    def size(channels: Channels) -> int:
        return channels.fixed + sum(r * groups[g].size for g, r in channels.parts)

    for node in nodes:
        shape = node.meta["shape"]
        inputs = [i for i in node.all_input_nodes if i.name in ops]
        module = modules.get(node.target) if node.op == "call_module" else None
        layer = None
        if shape is None:
            channels, elements = Channels(), 0
        else:
            channels = _propagate(node, shape, inputs, ops, size)
            if module is not None and _has_state(module):
                layer = _layer(node, module, shape, inputs[0].meta["shape"], side)
                if layer.name in layers:  # called again: the positions add up, the weights do not
                    layer = _again(layers[layer.name], layer)
                layers[layer.name] = layer
                channels = layer.outputs
            elements, rest = divmod(_product(shape[1:]), max(1, size(channels)))
            if rest:
                channels, elements = Channels((), _product(shape[1:])), 1
        what = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        ops[node.name] = Op(
            node.name, tuple(i.name for i in inputs), layer.name if layer else None, channels, elements,
            node.meta["view"], what if node.op != "placeholder" else "input",
        )  # fmt: skip
    return layers, ops


def _propagate(node: fx.Node, shape, inputs, ops, size) -> Channels:
    """Channels of an operation without weights: those of its first input if shapes tell so, else fixed."""
    if not inputs:
        return Channels((), shape[1] if len(shape) > 1 else 1)
    before = ops[inputs[0].name].channels
    old = inputs[0].meta["shape"]
    if node.target is torch.cat and (node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)) == 1:
        joined = [ops[i.name].channels for i in inputs]
        return Channels(tuple(p for c in joined for p in c.parts), sum(c.fixed for c in joined))
    if len(shape) > 1 and len(old) > 1 and shape[1] == old[1]:
        return before
    if len(shape) == 2 and len(old) > 2 and shape[1] == _product(old[1:]):
        return before.times(_product(old[2:]))
    return Channels((), shape[1] if len(shape) > 1 else 1)


def _layer(node: fx.Node, module: nn.Module, shape, shape_in, side) -> Layer:
    parameters = sum(p.numel() for p in module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    kind, kernel, width, stride, groups = "other", 0, 0, 1, 1
    fixed_params, fixed_bytes = parameters, buffers
    per_channel = buffers_per_channel = 0
    channels_in = channels_out = shape[1] if len(shape) > 1 else 1
    if isinstance(module, CONVOLUTIONS):
        channels_in, channels_out, groups = module.in_channels, module.out_channels, module.groups
        kind = "conv" if groups == 1 else "depthwise" if groups == channels_out == channels_in else "grouped"
        kernel, width, stride = _product(module.kernel_size), module.kernel_size[0], module.stride[0]
    elif isinstance(module, nn.Linear):
        kind, kernel, width = "linear", 1, 1
        channels_in, channels_out = module.in_features, module.out_features
    elif isinstance(module, NORMS):
        kind = "norm"
    if kind in ("conv", "depthwise", "grouped", "linear"):
        per_channel, fixed_params = int(module.bias is not None), 0
    elif kind == "norm" and parameters % channels_out == 0:
        per_channel, fixed_params = parameters // channels_out, 0
        tracked = [b for b in module.buffers() if b.numel() == channels_out and b.dim() == 1]
        buffers_per_channel = sum(b.element_size() for b in tracked)
        fixed_bytes = buffers - buffers_per_channel * channels_out
    outputs = side(node.target, "out", channels_out)
    inputs = side(node.target, "in", channels_in) if kind in ("conv", "linear", "grouped") else outputs
    return Layer(
        node.target, kind, inputs, outputs, channels_in, channels_out, kernel, width, stride, groups,
        _product(shape[1:]) // channels_out, _product(shape_in[1:]) // channels_in,
        per_channel, buffers_per_channel, fixed_params, fixed_bytes,
    )  # fmt: skip


def _again(first: Layer, second: Layer) -> Layer:
    return replace(first, positions=first.positions + second.positions)


def _product(numbers) -> int:
    result = 1
    for n in numbers:
        result *= n
    return result
