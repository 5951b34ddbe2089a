"""Operations in place, written out of place: students share tensors that their teacher did not, and autograd needs what it saved.

Whatever reads a tensor after it was written to reads the result of the operation from then on; so do views of it. What is written to
is seen by running the network once, from the counters that PyTorch keeps for autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress_env.contexts import seeded
from compress_env.errors import UserError
from compress_env.surgery.call import tensors
from compress_env.surgery.twins import name_of, twin_of

RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
SWAPS = ("transpose", "swapaxes", "swapdims", "t")
PARTS = ("chunk", "split", "split_with_sizes", "tensor_split", "unbind")
SHAPED = ("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_")
"""Methods that change how a tensor is read, not what is in memory: views of it stay as they are."""
TOLERANCE = 1e-3
"""Difference of outputs, as a share, up to which they are taken for rounding."""


def out_of_place(traced: fx.GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Rewrite operations and modules of a traced network that write to what they read, in place, so that it computes the same.

    Raises UserError if that is not possible.
    """
    if not any(_writes(traced, node) for node in traced.graph.nodes):
        return
    watch = _Watch(traced)
    expected = _outputs(watch.run, examples)
    _Rewriting(watch).run()
    for node in traced.graph.nodes:
        if _flagged(traced, node):
            traced.get_submodule(node.target).__dict__["inplace"] = False
    traced.recompile()
    found = _outputs(traced, examples)
    if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()), equal_nan=True):
        names = ", ".join(dict.fromkeys(str(node.target) for node in watch.written))
        raise UserError(f"{type(traced).__name__} writes to tensors in a way that cannot be followed ({names}); write it out of place")


def _outputs(run: Callable[..., Any], examples: tuple[Tensor, ...]) -> Tensor:
    """What a network gives for copies of the examples, always with the same random numbers."""
    with torch.no_grad(), seeded():
        return run(*(x.clone() for x in examples))


def _writes(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node may write to what it reads: operations in place, and modules that have parts that do."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        own = any(getattr(m, "inplace", False) is True for m in module.modules())
        return own or not type(module).__module__.startswith("torch.nn")
    return twin_of(node) is not None or (node.op == "call_method" and str(node.target).endswith("_"))


class _Watch(fx.Interpreter):
    """Runs a network as it is; notes results, which tensors are written to, and the types that results have to keep.

    All results are held, so that two tensors lie at one place in memory only if they share it.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.written: dict[fx.Node, list[fx.Node]] = {}
        self.casts: dict[fx.Node, torch.dtype] = {}
        self.geometry: dict[fx.Node, tuple[Any, ...]] = {}

    def run_node(self, node: fx.Node) -> Any:
        before = {i: [t._version for t in tensors(self.env.get(i))] for i in node.all_input_nodes}
        twin = twin_of(node)
        if twin is not None:
            args, kwargs = fx.node.map_arg((twin.args, dict(twin.kwargs)), lambda n: self.env[n])
            out = getattr(args[0], twin.target)(*args[1:], **kwargs) if node.op == "call_method" else twin.target(*args, **kwargs)
        result = super().run_node(node)
        if twin is not None and isinstance(result, Tensor) and out.dtype != result.dtype:
            self.casts[node] = result.dtype
        written = [i for i in node.all_input_nodes if [t._version for t in tensors(self.env.get(i))] != before[i]]
        if written:
            self.written[node] = written
        self.values[node] = result
        if isinstance(result, Tensor):
            self.geometry[node] = (_storage(result), result.storage_offset(), tuple(result.shape), result.stride())
        return result


class _Rewriting:
    """Goes through a network once, in order; `current` has for each node the one that holds its value by now."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch
        self.module: fx.GraphModule = watch.module  # type: ignore[assignment]
        self.graph = self.module.graph
        self.current: dict[fx.Node, fx.Node] = {}
        self.sharing: dict[int, list[fx.Node]] = {}
        """By place in memory, the nodes with a tensor there, in order."""
        self.position = {node: i for i, node in enumerate(self.graph.nodes)}
        self.original = {node: (node.args, node.kwargs) for node in self.graph.nodes}
        self.inputs = {node: list(node.all_input_nodes) for node in self.graph.nodes}
        self.now = 0

    def run(self) -> None:
        """Rewrite the graph."""
        for node in list(self.graph.nodes):
            self.now = self.position[node]
            node.args, node.kwargs = self._mapped(node, {})
            self._rewrite(node)
            for place in {_storage(t) for t in tensors(self.watch.values.get(node))}:
                self.sharing.setdefault(place, []).append(node)

    def _mapped(self, node: fx.Node, first: Mapping[fx.Node, fx.Node]) -> Any:
        """A node's arguments as they are by now."""
        return fx.node.map_arg(self.original[node], lambda n: first.get(n) or self.current.get(n, n))

    def _rewrite(self, node: fx.Node) -> None:
        twin, written = twin_of(node), self.watch.written.get(node, [])
        shaped = node.op == "call_method" and node.target in SHAPED
        own = [x for x in written if shaped or self._alike(x, node)][:1]
        flagged = _flagged(self.module, node)
        if twin is not None:
            target, args, kwargs = twin
            node.target, (node.args, node.kwargs) = target, fx.node.map_arg((args, dict(kwargs)), lambda n: n)
        if twin is not None or flagged:
            held = self._after(node, "to", node, self.watch.casts[node]) if node in self.watch.casts else node
            for x in own:
                self._move(x, held, node, shaped)
            if held is not node:
                self.current[node] = held
            return
        for x in own or written:  # a copy is written to
            before = self.current.get(x, x)
            with self.graph.inserting_before(node):
                copy = self.graph.call_method("clone", (before,))
            node.replace_input_with(before, copy)
            self._move(x, node if own else copy, node, shaped)

    def _move(self, x: fx.Node, held: fx.Node, node: fx.Node, shaped: bool) -> None:
        """Let everything behind `node` that reads `x`, or shares its memory, read the value in `held`."""
        values = self.watch.values
        places = {_storage(t) for t in tensors(values[x])}
        sharing = list(dict.fromkeys(z for place in places for z in self.sharing[place]))
        fresh = {z: held for z in sharing if values[z] is values[x] or (not shaped and self._alike(z, x))}
        if not shaped:
            last = held
            if self._others(x, fresh, sharing):
                last = self._put_back(x, held, fresh)
                if self._others(x, fresh, sharing):
                    raise UserError(f"{node.target} writes to a part of a tensor that is read again; write that out of place")
            views = self._views(fresh, sharing)
            for z in sharing:
                if z in views:
                    args, kwargs = self._mapped(z, fresh)
                    with self.graph.inserting_after(last):
                        last = fresh[z] = self.graph.create_node(z.op, z.target, args, kwargs)
        self.current.update(fresh)

    def _others(self, x: fx.Node, fresh: Collection[fx.Node], sharing: Sequence[fx.Node]) -> list[fx.Node]:
        """Nodes that are still read, are no views of those, and lie where `x` does."""
        others = [z for z in sharing if z not in fresh and z not in self._views(fresh, sharing) and self._is_read(z)]
        if not others:
            return []
        own = _places(self.watch.values[x])
        return [z for z in others if any(bool((_places(t) & own).any()) for t in tensors(self.watch.values[z]))]

    def _views(self, of: Collection[fx.Node], sharing: Sequence[fx.Node]) -> set[fx.Node]:
        """Nodes that are views of those."""
        found = set(of)
        for z in sharing:
            if any(i in found for i in self.inputs[z]):
                found.add(z)
        return found - set(of)

    def _put_back(self, x: fx.Node, held: fx.Node, fresh: dict[fx.Node, fx.Node]) -> fx.Node:
        """Put a new value into the tensors that `x` is a view of, as far as that is possible; returns the last node made for it."""
        place = _storage(self.watch.values[x])
        while True:
            sources = (i for i in self.inputs[x] if place in map(_storage, tensors(self.watch.values[i])))
            above = next(sources, None)
            if above is None:
                return held
            parted = not isinstance(self.watch.values[above], Tensor)  # x is one of several parts
            whole = self.inputs[above][0] if parted else above
            if whole not in fresh:
                put = self._put_part(x, above, held) if parted else self._put_whole(x, above, held)
                if put is None:
                    return held
                held = fresh[whole] = put
            x = whole

    def _put_whole(self, x: fx.Node, above: fx.Node, held: fx.Node) -> fx.Node | None:
        name, args = name_of(x), x.args[1:]
        before = self.current.get(above, above)
        if name in RESHAPES:
            return self._after(held, "reshape_as", held, before)
        if name in SWAPS:
            return self._after(held, name, held, *args)
        if name == "permute":
            order: Any = args[0] if isinstance(args[0], (tuple, list)) else args
            return self._after(held, "permute", held, *np.argsort(np.array(order) % len(order)).tolist())
        if name == "getitem":
            cut = _only_cut(args[0], self.watch.values[above].dim())
            if cut is not None and isinstance(cut[1], slice):
                index = cut[1]
                return self._after(held, torch.slice_scatter, before, held, cut[0], index.start, index.stop, index.step or 1)
            if cut is not None:
                return self._after(held, torch.select_scatter, before, held, *cut)
        return None

    def _put_part(self, x: fx.Node, above: fx.Node, held: fx.Node) -> fx.Node | None:
        source, index, parts = self.inputs[above][0], x.args[1], self.watch.values[above]
        if name_of(above) not in PARTS or not isinstance(index, int):
            return None
        position = 1 if name_of(above) == "unbind" else 2
        dim: Any = above.args[position] if len(above.args) > position else above.kwargs.get("dim", 0)
        before, index = self.current.get(source, source), index % len(parts)
        if name_of(above) == "unbind":
            return self._after(held, torch.select_scatter, before, held, dim, index)
        bounds = np.cumsum([0, *(part.shape[dim] for part in parts)]).tolist()
        return self._after(held, torch.slice_scatter, before, held, dim, bounds[index], bounds[index + 1])

    def _after(self, node: fx.Node, target: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_after(node):
            return self.graph.create_node("call_method" if isinstance(target, str) else "call_function", target, args)

    def _alike(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two nodes have the same tensor, or two that lie in memory in the same way."""
        geometry = self.watch.geometry
        return a in geometry and geometry[a] == geometry.get(b)

    def _is_read(self, node: fx.Node) -> bool:
        return any(self.position.get(user, -1) > self.now for user in node.users)


def _flagged(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is a module that is told to work in place."""
    return node.op == "call_module" and getattr(traced.get_submodule(str(node.target)), "inplace", False) is True


def _only_cut(index: Any, rank: int) -> tuple[int, Any] | None:
    """The axis and the index of `x[index]` where that is a slice, or a number, along one axis alone."""
    index = list(index) if isinstance(index, tuple) else [index]
    if any(i is None or not isinstance(i, (int, slice, type(Ellipsis))) for i in index):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index[at : at + 1] = [slice(None)] * (rank - len(index) + 1)
    cuts = [(axis, i) for axis, i in enumerate(index) if i != slice(None)]
    return cuts[0] if len(cuts) == 1 else None


def _places(tensor: Tensor) -> Tensor:
    """A mask of the places in memory that belong to a tensor, within its storage."""
    storage = tensor.untyped_storage().nbytes() // tensor.element_size()
    mask = torch.zeros(storage, dtype=torch.bool)
    mask.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return mask


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
