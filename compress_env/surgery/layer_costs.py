"""Layers and operations of a traced network, with their costs as terms in the widths."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.grouping import Grouping
from compress_env.surgery.ir import FLOAT_BYTES, Channels, Layer, Op, Readers, Term
from compress_env.surgery.measure import Usage
from compress_env.surgery.rules import Geometry, rule_of


def describe(
    nodes: list[fx.Node],
    modules: Mapping[str, nn.Module],
    grouping: Grouping,
    axes: Mapping[fx.Node, Mapping[int, np.ndarray]],
    flow: ChannelFlow,
    usage: Usage,
    within: Mapping[str, float],
    shared: Mapping[str, Readers],
) -> tuple[dict[str, Layer], dict[str, Op], dict[tuple[str, str], int]]:
    """Layers and operations in the order of computation, and the length of further axes that may shrink.

    The latter are those of bare parameters and of layers inside opaque ones.
    usage: what `measure` found. within: MACs of layers inside opaque ones. shared: what `find_shared` found.
    """
    return _Describer(modules, grouping, axes, flow, usage, within, shared).run(nodes)


class _Describer:
    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        grouping: Grouping,
        axes: Mapping[fx.Node, Mapping[int, np.ndarray]],
        flow: ChannelFlow,
        usage: Usage,
        within: Mapping[str, float],
        shared: Mapping[str, Readers],
    ) -> None:
        self.modules, self.grouping, self.all_axes = modules, grouping, axes
        self.flow, self.usage, self.within, self.shared = flow, usage, within, shared
        self.elsewhere = {reader for readers in shared.values() for reader in readers}
        self.layers: dict[str, Layer] = {}
        self.shapes: dict[tuple[str, str], int] = {}

    def run(self, nodes: list[fx.Node]) -> tuple[dict[str, Layer], dict[str, Op], dict[tuple[str, str], int]]:
        ops: dict[str, Op] = {}
        self.alive = set(nodes)
        for node in nodes:
            if node.op != "output":
                inputs = tuple(i.name for i in node.all_input_nodes if i.name in ops)
                ops[node.name] = self._op(node, inputs)
        return self.layers, ops, self.shapes

    def _op(self, node: fx.Node, inputs: tuple[str, ...]) -> Op:
        macs, held, number, lone, view = self.usage[node.name]
        shape = node.meta["shape"] or (lone if self.all_axes.get(node) else None)
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        layer: Layer | None = None
        terms: tuple[Term, ...] = ()
        if module is not None and _has_state(module):
            layer, terms = self._layer(node, module, macs)
        elif node.op == "get_attr":
            layer = None if node.meta["header"] else self._parameter(node)
            held = 0  # it is counted with the weights
        elif macs:
            terms = (self._term(macs, self._axes(node, self.flow.products.get(node, []))),)
            for i in node.all_input_nodes:  # weights of a function, a layer in all but name
                if i.op == "get_attr" and not i.meta["header"]:
                    name = (*i.meta["shared"], str(i.target))[0]
                    self.layers[name] = replace(self.layers[name], kind="other")
        part, parts = self._is_part(node), self._parts(node)
        if view and not part:
            held = 0
        if parts:
            held -= sum(self.usage[each.name].size for each in parts)
            shape = parts[0].meta["shape"]
        own = self._channels_of(parts[0] if parts else node)
        size = prod(self._size(c) for c in own)
        if shape is None or held % (number * size):
            own, size = [Channels((), 1)], 1
        if (
            not own[0].parts
            and shape is not None
            and len(shape) > 1
            and not held % (number * shape[1])
            and node.op != "get_attr"
        ):
            own, size = [Channels((), shape[1])], shape[1]
        elements = held // size / FLOAT_BYTES
        elements = int(elements) if elements.is_integer() else elements
        what = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        return Op(
            node.name, inputs, layer.name if layer else None, own[0], elements, view and not part,
            what if node.op != "placeholder" else "input", own[1] if len(own) > 1 else None, terms, node.meta["shared"], part,
        )  # fmt: skip

    def _parts(self, node: fx.Node) -> list[fx.Node]:
        """Of a result that is several tensors of its own, the nodes that take one of them out, each once."""
        if node.meta["shape"] is not None or self.usage[node.name].view:
            return []
        taken: dict[Any, fx.Node] = {}
        for user in node.users:
            takes = user in self.alive and user.target in (operator.getitem, getattr) and user.args[0] is node
            if takes and self.usage[user.name].view:
                taken.setdefault(user.args[1], user)
        return list(taken.values())

    def _is_part(self, node: fx.Node) -> bool:
        source = node.args[0] if node.args else None
        return isinstance(source, fx.Node) and source in self.alive and node in self._parts(source)

    def _channels_of(self, node: fx.Node) -> list[Channels]:
        axes = self.all_axes.get(node, {})
        found = [self._axis(node, d, numbers) for d, numbers in sorted(axes.items())]
        found = [c for c in found if c.parts]
        return found[:2] or [Channels((), 1)]

    def _axis(self, node: fx.Node, d: int, numbers: np.ndarray) -> Channels:
        one, two = self.usage[node.name].shape, node.meta["shape"]  # for one example, and as it was traced
        if one is not None and d < len(one) and (two is None or len(numbers) == two[d]):  # else it is an axis of what the node reads
            numbers = numbers[: one[d]]
        return self.grouping.channels(numbers, len(numbers))

    def _axes(self, node: fx.Node, ids: Iterable[Tensor]) -> list[Channels]:
        found = [self._axis(node, d, v) for each in ids for d, v in self.flow.axes([each]).items()]
        return [c for c in found if c.parts]

    def _size(self, channels: Channels) -> int:
        return channels.fixed + sum(r * self.grouping.sizes[g] for g, r in channels.parts)

    def _term(self, total: float, axes: list[Channels]) -> Term:
        axes = [c for c in axes if c.parts]
        return Term(total / prod(self._size(c) for c in axes), tuple(axes))

    def _side(self, layer: str, which: str, size: int) -> Channels:
        return self.grouping.channels(self.grouping.sides.get((layer, which)), size)

    def _layer(self, node: fx.Node, module: nn.Module, macs: float) -> tuple[Layer, tuple[Term, ...]]:
        name, rule = str(node.target), rule_of(module)
        shape = node.meta["shape"]
        shape_in = node.all_input_nodes[0].meta["shape"] if node.all_input_nodes else None
        numbers = self.flow.sides.get((name, "out"))
        size = shape[1] if shape is not None and len(shape) > 1 else 1
        known = rule.geometry(module, len(numbers) if numbers is not None else size)
        g = known or Geometry("other", size, size)
        if shape is None and known is not None:  # it gives more than one tensor; the first is like what it reads
            shape = shape_in
        outputs = self._side(name, "out", g.channels_out)
        inputs = self._side(name, "in", g.channels_in) if "in" in rule.sides else outputs
        if known is None:
            terms, bytes_, products = self._inner(name, module, macs)
        else:
            sides = {"in": inputs, "out": outputs}
            for side in rule.sides:
                if side not in sides:
                    sides[side] = self._side(name, side, rule.features(module, side))
                    self.shapes[name, side] = rule.features(module, side)
            along = self._axes(node, self.flow.along.get(name, []))

            def term(total: float, of: tuple[str | None, ...]) -> Term:
                return self._term(total, [sides[side] for side in rule.sides if side in of])

            own, held = module.named_parameters(), module.named_buffers()
            terms = [term(p.numel(), rule.axes(module, key, p)) for key, p in own if (name, key) not in self.elsewhere]
            bytes_ = [
                term(b.numel() * b.element_size(), rule.axes(module, key, b))
                for key, b in held
                if (name, key) not in self.elsewhere
            ]
            shapes = [s for i in node.all_input_nodes if (s := self.usage[i.name].shape) is not None]
            products = [
                self._term(part, [*(sides[side] for side in of), *along])
                for part, of in (rule.macs(module, shapes, macs) if macs else ())
            ]
        total_in = prod(shape_in[1:]) if shape_in else g.channels_in
        total_out = prod(shape[1:]) if shape is not None else g.channels_out
        layer = Layer(
            name, g.kind, inputs, outputs, g.channels_in, g.channels_out, g.kernel, g.kernel_size, g.stride, g.groups,
            max(1, total_out // g.channels_out), max(1, total_in // g.channels_in), tuple(terms), tuple(bytes_),
        )  # fmt: skip
        if name in self.layers:  # called again: the positions add up, the weights do not
            layer = replace(self.layers[name], positions=self.layers[name].positions + layer.positions)
        self.layers[name] = layer
        for each in node.meta["shared"]:
            self._shared(each)
        return layer, tuple(products)

    def _shared(self, name: str) -> Layer:
        """A tensor that several layers read, a layer of its own."""
        if name in self.layers:
            return self.layers[name]
        layer, key = self.shared[name][0]
        module = self.modules[layer]
        value = module.get_parameter(key) if key in dict(module.named_parameters(remove_duplicate=False)) else module.get_buffer(key)
        rule, axes = rule_of(module), []
        if rule.geometry(module, 1) is not None:
            sides = (self.grouping.sides.get((layer, side)) for side in rule.axes(module, key, value) if side)
            axes = [self.grouping.channels(numbers, len(numbers)) for numbers in sides if numbers is not None]
        return self._tensor(name, value, axes)

    def _inner(self, name: str, module: nn.Module, macs: float) -> tuple[list[Term], list[Term], list[Term]]:
        """Costs of a layer that is not understood: as they are, but for layers in it whose widths are."""
        parameters: list[Term] = []
        bytes_: list[Term] = []
        products: list[Term] = []
        for inner, part in module.named_modules():
            layer = f"{name}.{inner}" if inner else name
            axes = []
            for side in ("in", "out"):
                numbers = self.flow.sides.get((layer, side))
                if numbers is not None:
                    self.shapes[layer, side] = len(numbers)
                    axes.append(self.grouping.channels(numbers, len(numbers)))
            features = self.shapes.get((layer, "out"))
            for key, p in part.named_parameters(recurse=False):
                if (name, f"{inner}.{key}" if inner else key) in self.elsewhere:
                    continue
                vector = p.dim() == 1 and p.shape[0] == features
                parameters.append(self._term(p.numel(), axes[-1:] if vector else axes if key == "weight" else []))
            for key, b in part.named_buffers(recurse=False):
                if (name, f"{inner}.{key}" if inner else key) in self.elsewhere:
                    continue
                own = axes[-1:] if b.dim() and b.shape[0] == features else []
                bytes_.append(self._term(b.numel() * b.element_size(), own))
            if self.within.get(layer):
                products.append(self._term(self.within[layer], axes))
        rest = macs - sum(self.within.get(f"{name}.{inner}", 0) for inner, _ in module.named_modules())
        return parameters, bytes_, [*products, *([Term(rest)] if rest else [])]

    def _parameter(self, node: fx.Node) -> Layer | None:
        name = str(node.target)
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.modules[owner], attribute)
        if not hasattr(value, "numel"):
            return None
        axes = {}
        for side, numbers in self.grouping.sides.items():
            if side[0] == name:
                axes[side[1]] = self.grouping.channels(numbers, len(numbers))
                self.shapes[side] = len(numbers)
        for name in node.meta["shared"]:
            if self.shared[name][0][1]:
                return self._shared(name)
        return self._tensor(name, value, list(axes.values()))

    def _tensor(self, name: str, value: Tensor, axes: list[Channels]) -> Layer:
        trained = isinstance(value, nn.Parameter)
        terms = (self._term(value.numel(), axes),) if trained else ()
        bytes_ = () if trained else (self._term(value.numel() * value.element_size(), axes),)
        first = next((axis for axis in axes if axis.parts), Channels((), 1))
        size = self._size(first)
        layer = Layer(name, "parameter", first, first, size, size, 0, 0, 1, 1, 1, 1, terms, bytes_)
        return self.layers.setdefault(name, layer)


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
