"""Which channels depend on each other, found by running the network once with channel numbers travelling along.

The idea of torch-pruning's DepGraph (Fang et al., CVPR 2023), which this replaces where networks can be traced: there, the map
from one layer's channels to another's goes wrong or fails where channels are moved (shuffles, attention heads, windows). Here,
an operation without a rule fixes the channels it sees, so that what is not understood stays as it is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress_env.surgery.channel_ids import Ties, compact, respread, spread
from compress_env.surgery.layer_types import (
    DENSE,
    ELEMENTWISE,
    MOVING,
    MOVING_MODULES,
    NORMS,
    REDUCING,
    SAME_AXIS,
    SAME_AXIS_FUNCTIONS,
    SAME_CHANNELS,
)

LARGEST_PARAMETER = 200_000
"""A bare parameter with more numbers, an embedding table say, keeps its size."""

Labels = list[Tensor]


class Dependencies(fx.Interpreter):
    """Runs the network once. Notes for each node its shape and labels, and for each layer the channel numbers of its sides.

    sides: `(layer, "in" or "out") -> numbers (features,)`, None for a side of fixed size. Bare parameters have a side for each
    of their axes, named "0", "1" and so on. along: what else a linear layer's cost grows with (channels in place of tokens).
    products: the channel axes of matrix products. resized: nodes with sizes, splits or slices that have to follow the widths.
    """

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.ties = Ties()
        self.sides: dict[tuple[str, str], np.ndarray | None] = {}
        self.along: dict[str, Labels] = {}
        self.products: dict[fx.Node, Labels] = {}
        self.parameters: dict[str, Tensor] = {}
        self.splits: dict[fx.Node, tuple[int, Labels, list[int]]] = {}
        self.slices: dict[fx.Node, list[tuple[int, Labels, int, int]]] = {}
        self.labels: dict[fx.Node, Labels | tuple] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        node.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        given = {_storage(t) for i in node.all_input_nodes for t in _tensors(self.env.get(i))}
        node.meta["view"] = node.op != "placeholder" and all(_storage(t) in given for t in _tensors(result))
        labels = self._follow(node, result)
        if labels is not None:
            self.labels[node] = labels
        return result

    def settle(self) -> None:
        """Make every tensor a block: where channels were spread over several axes, they shrink along one, that of most choices."""
        self.parameters = {name: each for name, each in self.parameters.items() if not self._all_fixed(each)}
        self.labels = {
            node: tuple(self._open(part) for part in labels) if isinstance(labels, tuple) else self._open(labels)
            for node, labels in self.labels.items()
        }
        changed = True
        while changed:
            changed = False
            for labels in self._all():
                for each in labels:
                    axes = self.ties.varying(each)
                    if len(axes) > 1:
                        choices = {d: self._choices(each, axes, d) for d in axes}
                        best = max(axes, key=lambda d: (choices[d], -d))
                        self.ties.tie_along(each, [d for d in axes if d != best])
                        changed = True
                taken = [d for each in labels for d in self.ties.varying(each)]
                for each in labels if len(taken) != len(set(taken)) else ():
                    self._fix([each], "two kinds of channels share an axis")
                    self.ties.tie_along(each, range(each.dim()))
                    changed = True

    def _open(self, labels: Labels) -> Labels:
        return [each for each in labels if not self._all_fixed(each)]

    def _all_fixed(self, labels: Tensor) -> bool:
        roots = np.unique(self.ties.find(compact(labels).numpy()))
        return len(roots) <= len(self.ties.fixed) and all(r in self.ties.fixed for r in roots.tolist())

    def _choices(self, labels: Tensor, axes: list[int], axis: int) -> int:
        """In how many ways the tensor could shrink along `axis`."""
        for d in range(labels.dim()):
            if d != axis:
                labels = labels.narrow(d, 0, 1)
        return len(np.unique(self.ties.find(labels.flatten().numpy())))

    def _all(self):
        for labels in [*self.labels.values(), *([p] for p in self.parameters.values())]:
            yield from labels if isinstance(labels, tuple) else [labels]

    def axes(self, labels: Labels) -> dict[int, np.ndarray]:
        """For each axis that runs over channels their numbers, once `settle` was called."""
        return {d: self.ties.vector(each, d) for each in labels for d in self.ties.varying(each)}

    # rules

    def _follow(self, node: fx.Node, result) -> Labels | tuple | None:
        if node.op == "placeholder":
            return [] if isinstance(result, Tensor) else None
        if node.op == "get_attr":
            return self._parameter(node, result)
        if node.op == "output":
            for i in node.all_input_nodes:
                self._fix(self.labels.get(i, []), "its channels are the network's outputs")
            return None
        inputs = [i for i in node.all_input_nodes if isinstance(self.env.get(i), Tensor)]
        if node.op == "call_module":
            return self._module(node, self.module.get_submodule(node.target), inputs, result)
        if not _tensors(result):
            return None
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if name == "getitem" and isinstance(self.env.get(node.args[0]), (tuple, list)):
            return self.labels[node.args[0]][node.args[1]]
        if not any(self.labels.get(i) for i in node.all_input_nodes):
            return self._nothing(result)
        if name in ("cat", "concat", "concatenate", "stack"):
            return self._cat(node, result, name == "stack")
        if name in ELEMENTWISE and isinstance(result, Tensor):
            return self._combine([(self.labels[i], self.env[i].shape) for i in inputs], result.shape)
        if name in MOVING:
            return self._move(node, inputs[0], result)
        if name == "getitem":
            return self._getitem(node, inputs[0], result)
        if name in ("chunk", "split", "tensor_split", "split_with_sizes"):
            return self._split(node, inputs[0], result)
        if name == "unbind":
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            for each in self.labels[inputs[0]]:
                self.ties.tie_along(each, [dim % each.dim()])
            return self._move(node, inputs[0], result)
        if name in REDUCING and isinstance(result, Tensor):
            return self._reduce(node, inputs[0], result)
        if name in ("matmul", "bmm") and len(inputs) == 2:
            return self._matmul(node, *inputs, result)
        if name == "scaled_dot_product_attention":
            return self._attention(node, inputs, result)
        if node.target in SAME_AXIS_FUNCTIONS:
            return self._same_axis(inputs[0], result)
        if name == "pad":
            return self._pad(node, inputs[0], result)
        return self._opaque(node, f"{name or node.target} has no rule for shrinking", result)

    def _module(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node], result):
        name = node.target
        if isinstance(module, DENSE) and len(inputs) == 1:
            return self._dense(node, name, module, inputs[0], result)
        if isinstance(module, NORMS) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
            return self._norm(name, module, inputs[0], result)
        if isinstance(module, (*SAME_CHANNELS, nn.PReLU)) and isinstance(result, Tensor):
            return self._combine([(self.labels[inputs[0]], result.shape)], result.shape)
        if isinstance(module, SAME_AXIS) and isinstance(result, Tensor):
            return self._same_axis(inputs[0], result)
        if isinstance(module, MOVING_MODULES):
            return [module(each) for each in self.labels[inputs[0]]]
        return self._opaque(node, f"{name} ({type(module).__name__}) has no rule for shrinking", result)

    def _parameter(self, node: fx.Node, value) -> Labels | None:
        if not isinstance(value, Tensor):
            return None
        if not isinstance(value, nn.Parameter) or not 1 < value.numel() <= LARGEST_PARAMETER:
            return []
        if node.target not in self.parameters:
            numbers = self.ties.fresh(value.numel())
            self.parameters[node.target] = torch.from_numpy(numbers).view(value.shape)
        return [self.parameters[node.target]]

    def _fix(self, labels, reason: str) -> None:
        for each in labels:
            if isinstance(each, list):
                self._fix(each, reason)
            else:
                self.ties.fix(each.numpy(), reason)

    def _nothing(self, result):
        return tuple([] for _ in result) if isinstance(result, (tuple, list)) else []

    def _opaque(self, node: fx.Node, reason: str, result):
        for i in node.all_input_nodes:
            self._fix(self.labels.get(i, []), reason)
        return self._nothing(result)

    def _channels(self, labels: Labels, axis: int, shape) -> tuple[np.ndarray | None, Labels]:
        """The numbers along `axis`, None if it has a fixed size, and the labels of other axes."""
        axis %= len(shape)
        own = [each for each in labels if axis in self.ties.varying(each)]
        rest = [each for each in labels if not any(each is o for o in own)]
        if len(own) > 1:
            self._fix(own, "two kinds of channels share an axis")
        return (self.ties.vector(own[0], axis) if own else None), rest

    def _side(self, layer: str, side: str, numbers: np.ndarray | None) -> np.ndarray | None:
        """Note the channels of a side; a layer that is called again ties them to those of the first call."""
        first = (layer, side) not in self.sides
        before = self.sides.setdefault((layer, side), numbers)
        if not first and before is not None and numbers is not None:
            self.ties.unite(before, numbers)
        elif not first and (before is None) != (numbers is None):
            known = before if numbers is None else numbers
            self.ties.fix(known, f"{layer} is also called with an input of fixed size")
            self.sides[layer, side] = known
        return self.sides[layer, side]

    def _dense(self, node: fx.Node, name: str, module: nn.Module, x: fx.Node, result: Tensor) -> Labels:
        linear = isinstance(module, nn.Linear)
        axis, shape = (-1 if linear else 1), tuple(self.env[x].shape)
        numbers, rest = self._channels(self.labels[x], axis, shape)
        if not linear:
            self._fix(rest, f"{name} mixes the places that they were moved to")
            rest = []
        groups = 1 if linear else module.groups
        self._side(name, "in", numbers)
        out = self.sides.get((name, "out"))
        if out is None:
            out = self._side(name, "out", self.ties.fresh(result.shape[axis]))
        if groups > 1:
            self._grouped(name, groups, numbers, out)
        carried = [respread(each, tuple(result.shape)) for each in rest]
        self.along[name] = carried
        return [*carried, spread(out, tuple(result.shape), axis)]

    def _grouped(self, name: str, groups: int, numbers: np.ndarray | None, out: np.ndarray) -> None:
        """A grouped convolution loses whole groups, or the same channels of every group, whichever gives more choices."""
        outputs = out.reshape(groups, -1)
        if numbers is None:
            if outputs.shape[1] == 1:
                self.ties.fix(out, f"{name} has an input of fixed size")
            self._tie_rows(outputs.T)
            return
        inputs = numbers.reshape(groups, -1)
        if groups >= inputs.shape[1]:
            self._tie_rows(np.concatenate([inputs, outputs], 1))
        else:
            self._tie_rows(inputs.T)
            self._tie_rows(outputs.T)

    def _tie_rows(self, table: np.ndarray) -> None:
        """Tie all numbers of each row."""
        self.ties.unite(table, np.broadcast_to(table[:, :1], table.shape))

    def _norm(self, name: str, module: nn.Module, x: fx.Node, result: Tensor) -> Labels:
        shape = tuple(result.shape)
        axis = 1
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            size = tuple(module.normalized_shape)
            if len(size) > 1:
                self._fix(self.labels[x], f"{name} normalises over several axes")
                return self.labels[x]
            # subclasses called LayerNorm2d normalise the channels of images
            axis = 1 if type(module).__name__.endswith("2d") or shape[-1:] != size else -1
        numbers, _ = self._channels(self.labels[x], axis, shape)
        numbers = self._side(name, "out", numbers)
        if isinstance(module, nn.GroupNorm) and numbers is not None:
            table = numbers.reshape(module.num_groups, -1)
            self._tie_rows(table if table.shape[0] > table.shape[1] else table.T)
        return [respread(each, shape) for each in self.labels[x]]

    def _combine(self, inputs: list[tuple[Labels, tuple[int, ...]]], shape) -> Labels:
        """Elementwise operation on broadcast tensors: channels that meet are tied, those that meet a fixed size are fixed."""
        shape = tuple(shape)
        padded = [((1,) * (len(shape) - len(s)) + tuple(s), labels) for labels, s in inputs]
        wide = [(own, [each.expand(shape) for each in labels]) for own, labels in padded]
        result: Labels = []
        for i, (_, labels) in enumerate(wide):
            for each in labels:
                axes = self.ties.varying(each)
                for j, (own, others) in enumerate(wide):
                    if j == i or all(own[d] == 1 for d in axes):
                        continue
                    meeting = [o for o in others if set(self.ties.varying(o)) & set(axes)]
                    for other in meeting:
                        self.ties.tie(each, other)
                    if not meeting and axes:
                        self.ties.fix(each.numpy(), "it meets a tensor of fixed size")
                if axes and not any(set(self.ties.varying(r)) & set(axes) for r in result):
                    result.append(each)
        return result

    def _move(self, node: fx.Node, x: fx.Node, result):
        """Run the operation itself on the labels."""
        if node.target in ("roll", "flip", torch.roll, torch.flip, "narrow", torch.narrow):
            arguments = [*node.args[1:], *node.kwargs.values()]
            moved = set(range(len(self.env[x].shape))) if not arguments else _axes(arguments[-1] if node.target in (
                "roll", torch.roll, "flip", torch.flip) else arguments[0], len(self.env[x].shape))  # fmt: skip
            for each in self.labels[x]:
                if moved & set(self.ties.varying(each)):
                    self._fix([each], f"{node.name} moves part of its axis")
        moved = [self._call(node, {x: each}) for each in self.labels[x]]
        if isinstance(result, Tensor):
            return moved
        return tuple([each[i] for each in moved] for i in range(len(result)))

    def _call(self, node: fx.Node, instead: dict[fx.Node, Tensor]):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: instead.get(n, self.env[n]))
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        method = "reshape" if node.target == "view" else node.target  # labels lie elsewhere in memory
        return getattr(args[0], method)(*args[1:], **kwargs)

    def _getitem(self, node: fx.Node, x: fx.Node, result):
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        rank, axis = self.env[x].dim(), 0
        node.meta["rank"] = rank
        used = sum(i is not None and i is not Ellipsis for i in index)
        bounds: list[tuple[int, Labels, int, int]] = []
        for i in fx.node.map_arg(index, lambda n: self.env[n]):
            if i is Ellipsis:
                axis += rank - used
            elif isinstance(i, slice):
                start, stop, step = i.indices(self.env[x].shape[axis])
                own = [each for each in self.labels[x] if axis in self.ties.varying(each)]
                if step != 1:
                    self._fix(own, f"{node.name} takes every {step}th")
                elif own and (start, stop) != (0, self.env[x].shape[axis]):
                    bounds.append((axis, own, start, stop))
                axis += 1
            elif i is not None:
                if isinstance(i, Tensor) and i.dtype == torch.bool:
                    return self._opaque(node, f"{node.name} selects with a mask", result)
                for each in self.labels[x]:
                    self.ties.tie_along(each, [axis])
                axis += 1
        if bounds:
            self.slices[node] = bounds
        return [self._call(node, {x: each}) for each in self.labels[x]]

    def _split(self, node: fx.Node, x: fx.Node, result) -> tuple:
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0) % self.env[x].dim()
        own = [each for each in self.labels[x] if dim in self.ties.varying(each)]
        if own:
            self.splits[node] = (dim, own, [part.shape[dim] for part in result])
        return self._move(node, x, result)

    def _reduce(self, node: fx.Node, x: fx.Node, result: Tensor) -> Labels:
        rank = self.env[x].dim()
        where = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if where is None or isinstance(where, float) or len(_axes(where, rank)) == rank:
            return []
        kept = result.dim() == rank
        labels = []
        for each in self.labels[x]:
            axes = self.ties.varying(each)
            gone = _axes(where, rank)
            if set(axes) & gone:
                if set(axes) <= gone:
                    continue
                self.ties.tie_along(each, gone)
            for d in sorted(gone, reverse=True):
                each = each.narrow(d, 0, 1) if kept else each.select(d, 0)
            labels.append(each)
        return labels

    def _same_axis(self, x: fx.Node, result: Tensor) -> Labels:
        """Pooling and resampling: the axes that change their length are no channels."""
        old, new = self.env[x].shape, tuple(result.shape)
        labels = []
        for each in self.labels[x]:
            if len(old) != len(new) or any(old[d] != new[d] for d in self.ties.varying(each)):
                self._fix([each], "its axis is resampled")
            elif set(self.ties.varying(each)) <= {0, 1}:
                labels.append(respread(each, new))
            else:
                self._fix([each], "its axis is pooled")
        return labels

    def _pad(self, node: fx.Node, x: fx.Node, result: Tensor) -> Labels:
        labels = []
        for each in self.labels[x]:
            if any(self.env[x].shape[d] != result.shape[d] for d in self.ties.varying(each)):
                amounts = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
                each = F.pad(each, fx.node.map_arg(amounts, lambda n: self.env[n]), value=-1)
                new = self.ties.fresh(1)
                self.ties.fix(new, "it is padding")
                labels.append(torch.where(each < 0, int(new[0]), each))
            else:
                labels.append(respread(each, tuple(result.shape)))
        return labels

    def _cat(self, node: fx.Node, result: Tensor, stack: bool) -> Labels:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) % result.dim()
        shapes = [tuple(self.env[p].shape) for p in parts]
        labels = [list(self.labels[p]) for p in parts]
        if stack:
            shapes = [(*s[:dim], 1, *s[dim:]) for s in shapes]
            labels = [[each.unsqueeze(dim) for each in own] for own in labels]
        joined, across = [], []
        for own, shape in zip(labels, shapes):
            numbers = None
            for each in own:
                axes = self.ties.varying(each)
                if axes == [dim]:
                    numbers = self.ties.vector(each, dim)
                elif axes:
                    self.ties.tie_along(each, [dim])
            if numbers is None and shape[dim] == 1:
                single = [each for each in own if not self.ties.varying(each)]
                numbers = single[0].flatten()[:1].numpy() if single else None
            joined.append(numbers)
            across.append([each for each in own if set(self.ties.varying(each)) - {dim}])
        out = self._combine(
            [([respread(e, self._flat(s, dim)) for e in own], self._flat(s, dim)) for own, s in zip(across, shapes)],
            self._flat(tuple(result.shape), dim),
        )
        out = [respread(each, tuple(result.shape)) for each in out]
        if any(n is not None for n in joined):
            for i, shape in enumerate(shapes):
                if joined[i] is None:
                    joined[i] = self.ties.fresh(shape[dim])
                    self.ties.fix(joined[i], "it is joined with a tensor of fixed size")
            out.append(spread(np.concatenate(joined), tuple(result.shape), dim))
        return out

    @staticmethod
    def _flat(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
        return (*shape[:dim], 1, *shape[dim + 1 :])

    def _matmul(self, node: fx.Node, a: fx.Node, b: fx.Node, result: Tensor) -> Labels:
        """Channels along a contracted axis are tied to each other; where they run over heads too, heads go whole."""
        left, right = tuple(self.env[a].shape), tuple(self.env[b].shape)
        if len(left) < 2 or len(right) < 2:
            return self._opaque(node, f"{node.name} multiplies vectors", result)
        contracted, rest = [], []
        for x, shape, axis in ((a, left, len(left) - 1), (b, right, len(right) - 2)):
            own = []
            for each in self.labels[x]:
                axes = self.ties.varying(each)
                if axis in axes and len(axes) > 1:
                    self.ties.tie_along(each, [axis])
                elif axis in axes:
                    contracted.append((x, each, axis))
                    continue
                own.append(respread(each, self._flat(shape, axis)))
            rest.append((own, self._flat(shape, axis)))
        if len(contracted) == 2 and contracted[0][0] is not contracted[1][0]:
            self.ties.unite(*(self.ties.vector(each, axis) for _, each, axis in contracted))
        else:
            self._fix([each for _, each, _ in contracted], f"{node.name} multiplies it with a tensor of fixed size")
        out = self._combine(rest, result.shape)
        self.products[node] = [*out, *[each for _, each, _ in contracted[:1]]]
        return out

    def _attention(self, node: fx.Node, inputs: list[fx.Node], result: Tensor) -> Labels:
        """Fused attention on `(..., heads, tokens, size)`: heads go whole."""
        rest = []
        for x in inputs[:3]:
            shape = tuple(self.env[x].shape)
            for each in self.labels[x]:
                if self.ties.varying(each)[-1:] == [len(shape) - 1]:
                    if len(self.ties.varying(each)) == 1:
                        self._fix([each], f"{node.name} has one head")
                    self.ties.tie_along(each, [len(shape) - 1])
            flat = (*shape[:-2], 1, 1)
            rest.append(([respread(each, flat) for each in self.labels[x]], flat))
        for x in inputs[3:]:
            flat = (*self.env[x].shape[:-2], 1, 1)
            rest.append(([], flat))
        out = self._combine(rest, result.shape)
        self.products[node] = out
        return out


def _axes(where, rank: int) -> set[int]:
    return {d % rank for d in ([where] if isinstance(where, int) else where)}


def _tensors(value) -> list[Tensor]:
    return [t for t in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(t, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
