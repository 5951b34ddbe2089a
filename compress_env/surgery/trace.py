"""`trace`: from a teacher to its `LayerGraph`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from compress_env.contexts import seeded
from compress_env.errors import UserError
from compress_env.surgery.build import build_student
from compress_env.surgery.dependencies import follow_channels
from compress_env.surgery.derived import check_derived
from compress_env.surgery.fallback import inner_macs, inner_sides
from compress_env.surgery.folding import computed_weights
from compress_env.surgery.graph import WHOLE, LayerGraph
from compress_env.surgery.grouping import Grouping
from compress_env.surgery.inplace import out_of_place
from compress_env.surgery.ir import Resize
from compress_env.surgery.layer_costs import describe
from compress_env.surgery.layout import needs_plain
from compress_env.surgery.measure import measure, shared_copy
from compress_env.surgery.paths import ancestors, enclosing
from compress_env.surgery.plan import Plan
from compress_env.surgery.removal import Finder
from compress_env.surgery.resize import find_resizes
from compress_env.surgery.rules import rule_of
from compress_env.surgery.sharing import find_shared, tie_shared
from compress_env.surgery.tracer import trace_modules, warn_not_traced
from compress_env.surgery.twins import name_of
from compress_env.surgery.verify import NotRebuilt, check_rebuilt, verified

LEADING = {
    "view": ("size",), "reshape": ("shape",), "expand": ("size",), "broadcast_to": ("size",), "unflatten": ("dim", "sizes"),
    "chunk": (), "tensor_split": (),
}  # fmt: skip
"""By function, the names of the arguments behind the tensor that students may get others for, which are looked up by position."""


@seeded()  # for networks that are random in evaluation mode, too
def trace(
    teacher: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    protect: Sequence[str] = (),
    removable: Sequence[str] = ("*",),
    shrinkable: Sequence[str] = ("*",),
    channel_multiple: int = 1,
    min_width: float = 0.1,
) -> LayerGraph:
    """Find the blocks of `teacher` that can be removed, the groups that can be shrunk, and the cost of everything.

    example_input: `(batch, ...)`, or a tuple of them for a network of several inputs. protect: patterns of layer names
    (`"layer1.*"`) that stay as they are; removable, shrinkable: patterns of those that may be removed or shrunk.
    channel_multiple: widths are multiples of it, for hardware that computes 8, 16 or 32 channels at a time.
    min_width: the smallest share of a group's channels that may stay. The teacher is not changed.
    Raises UserError if the network cannot be run or returns no single tensor, if weights are computed from others, or if a pattern
    fits no layer.
    """
    if names := computed_weights(teacher):
        raise UserError(f"the weights of {names[0]!r} are computed from others before each use; load_teacher(model).module folds them")
    model = shared_copy(teacher).eval()
    for held in (value for module in model.modules() for name, value in vars(module).items() if "cache" in name):
        if isinstance(held, dict):  # timm keeps there what it computed from parameters, which are to be read again
            held.clear()
    examples = _examples(model, example_input)
    check_derived(model, examples)
    scope = _Scope(protect, removable, shrinkable, channel_multiple, min_width)
    regions: set[str] = set()
    while True:
        traced, opaque = trace_modules(model, examples, regions)
        _by_position(traced.graph)
        out_of_place(traced, examples)
        try:
            graph = _graph(teacher, model, traced, opaque, examples, scope)
            whole = build_student(model, graph, Plan())
            check_rebuilt(model, whole, examples)
            break
        except NotRebuilt as error:
            if WHOLE in opaque:
                what = type(teacher).__name__
                raise UserError(f"{what} cannot be compressed: its students are not as predicted ({error})") from error
            regions = opaque | {next((r for r in enclosing(error.layer) if r not in opaque), WHOLE)}
            warn_not_traced(model, error, regions - opaque)
    smallest = graph.canonical(frozenset(graph.blocks), graph.full)
    plain = needs_plain([whole, *(build_student(model, graph, plan) for plan in {smallest} - {Plan()})], examples)
    return replace(graph, plain_layout=True) if plain else graph


class _Scope(NamedTuple):
    """What `trace` may change, as its arguments."""

    protect: Sequence[str]
    removable: Sequence[str]
    shrinkable: Sequence[str]
    channel_multiple: int
    min_width: float


def _graph(
    teacher: nn.Module,
    model: nn.Module,
    traced: fx.GraphModule,
    opaque: set[str],
    examples: tuple[Tensor, ...],
    scope: _Scope,
) -> LayerGraph:
    """The graph of a traced network. Raises NotRebuilt if the network that is built from it is not the same."""
    protect, removable, shrinkable, channel_multiple, min_width = scope
    output = next(n for n in traced.graph.nodes if n.op == "output").args[0]
    flow = follow_channels(traced, examples)
    inner = inner_sides(traced, examples, opaque, flow.ties) if opaque else {}
    flow.sides.update(inner)
    modules = dict(traced.named_modules())
    constants = {n.target: getattr(traced, n.target) for n in traced.graph.nodes
                 if n.op == "get_attr" and "." not in n.target and not hasattr(teacher, n.target)}  # fmt: skip
    alive = ancestors(output)
    nodes = [n for n in traced.graph.nodes if n in alive]
    shared = find_shared(traced, nodes)
    tie_shared(flow, traced, shared)
    flow.settle()
    usage = measure(traced, examples)
    axes = {n: flow.axes(flow.of(n)) for n in nodes if n in flow.ids and usage[n.name].shape is not None}
    resized = find_resizes(flow, nodes, axes)
    every = [v for own in axes.values() for v in own.values()]
    every += [v for _, parts in resized.values() for own in parts.values() for v in own if not isinstance(v, int)]
    names = [n.target for n in nodes if n.op == "call_module" and rule_of(modules[n.target]).sides]
    _check_patterns([p for p in (*protect, *removable, *shrinkable) if p != "*"], names)

    def shrinks(layer: str) -> bool:
        return not _matches(layer, protect) and _matches(layer, shrinkable)

    for (layer, side), numbers in flow.sides.items():
        if numbers is not None and side in rule_of(modules[layer]).produces and not shrinks(layer):
            flow.ties.fix(numbers, "kept on request")
    within = inner_macs(traced, examples, {layer for layer, _ in inner})

    def build(frozen: dict[str, str], without: dict[str, str]) -> LayerGraph:
        for layer, reason in frozen.items():
            for side in rule_of(modules[layer]).produces:
                flow.fix_side(layer, side, reason)
        grouping = Grouping(flow, modules, every)
        groups = grouping.groups(min_width, channel_multiple)
        layers, ops, shapes = describe(nodes, modules, grouping, axes, flow, usage, within, shared)
        shapes.update({key: len(numbers) for key, numbers in grouping.rows.items()})
        finder = Finder(nodes, output, layers, modules, grouping, axes)
        blocks = {
            name: block
            for name, block in finder.blocks().items()
            if name not in without
            and not any(_matches(layer, protect) for layer in block.layers)
            and all(
                _matches(layer, removable) for layer in block.layers if layers[layer].kind not in ("norm", "parameter")
            )
        }
        left_alone = grouping.left_alone()
        for name, reason in {**finder.left_alone, **without}.items():
            left_alone.setdefault(name, f"not removable: {reason}")
        for name in opaque - {layer for block in blocks.values() for layer in block.layers}:
            left_alone.setdefault(name, "it cannot be traced")
        resizes = {
            name: Resize(kind, tuple((d, tuple(map(grouping.axis, own))) for d, own in parts.items()))
            for name, (kind, parts) in resized.items()
        }
        shape = tuple(examples[0].shape[1:])
        return LayerGraph(
            ops, output.name, layers, blocks, groups, traced.graph, left_alone, shape, resizes, shapes, type(teacher).__name__,
            constants=constants, shared=shared,
        )  # fmt: skip

    return verified(model, build, examples)


def _by_position(graph: fx.Graph) -> None:
    """Have arguments that are looked up by position given so, where the network gives them by name: `x.view(size=(2, 3))`."""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and name_of(node) in LEADING:
            args, kwargs = list(node.args), dict(node.kwargs)
            names = ("input", *LEADING[name_of(node)])
            args += [kwargs.pop(name) for name in names[len(args) :] if name in kwargs]
            node.args, node.kwargs = tuple(args), kwargs


def _examples(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two examples on the model's device, so that batch and block dimensions cannot be mistaken."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    given = example_input if isinstance(example_input, tuple) else (example_input,)
    return tuple(torch.cat([x[:1], x[:1]]).to(device) for x in given)


def _check_patterns(patterns: Sequence[str], layers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in layers):
            raise UserError(f"no layer is called {pattern!r}; layers are {', '.join(list(layers)[:4])} and so on")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, p) for p in patterns)
