"""The cost model: what a network costs as polynomials of its groups' widths, compiled once for a layer graph.

Parameters, MACs, bytes of buffers and activations are sums of terms, each a factor times the number of channels on at most a few
axes; a number of channels is linear in the widths. Removing blocks makes terms vanish with the operations and layers that nothing
needs any more, and makes the channels of vanished groups those of the groups that take their place. So for a set of removed blocks
only the factors and one small matrix are made anew, and a cost is a handful of array operations, for many widths at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compress_env.surgery.ir import Block, Layer, Op, Term

Spread = tuple[np.ndarray, np.ndarray] | None
"""The widths of groups with blocks removed, as `matrix @ widths + constant`; None if all are their own."""


class Polynomial:
    """`(groups,)` widths give a number, `(groups, n)` of them `(n,)` numbers; with a matrix of factors `(k,)` or `(k, n)`."""

    def __init__(self, matrix: np.ndarray, constant: np.ndarray, index: np.ndarray, factors: np.ndarray) -> None:
        self._matrix, self._constant, self._index, self._factors = matrix, constant, index, factors

    def products(self, widths: np.ndarray) -> np.ndarray:
        """The products of sizes that the terms are multiples of."""
        sizes = self._matrix @ widths
        sizes += self._constant if widths.ndim == 1 else self._constant[:, None]
        first, *others = self._index
        product = sizes.take(first, axis=0)
        for each in others:
            product *= sizes.take(each, axis=0)
        return product

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        """The value at these widths."""
        return self._factors @ self.products(widths)


class Sum:
    """Terms of owners, which are operations or layers: those of equal axes are taken together."""

    def __init__(self, terms: Iterable[tuple[int, Term]], owners: int, groups: Mapping[str, int]) -> None:
        rows: dict[tuple, int] = {((), 1): 0}  # the number 1, where a term has fewer axes than others
        products: dict[tuple[int, ...], int] = {}
        entries = []
        for owner, term in terms:
            axes = tuple(sorted(rows.setdefault((c.parts, c.fixed), len(rows)) for c in term.axes))
            entries.append((products.setdefault(axes, len(products)), owner, term.factor))
        self.index = np.zeros((max([1, *map(len, products)]), len(products)), int)
        for j, axes in enumerate(products):
            self.index[: len(axes), j] = axes
        self.matrix = np.zeros((len(rows), len(groups)))
        self.constant = np.array([fixed for _, fixed in rows], float)
        for i, (parts, _) in enumerate(rows):
            for name, repeats in parts:
                self.matrix[i, groups[name]] += repeats
        self.factors = np.zeros((len(products), owners))
        for j, owner, factor in entries:
            self.factors[j, owner] += factor

    def of(self, factors: np.ndarray, spread: Spread) -> Polynomial:
        """The sum with these factors of its products, when widths have become `spread`."""
        if spread is None:
            return Polynomial(self.matrix, self.constant, self.index, factors)
        return Polynomial(self.matrix @ spread[0], self.matrix @ spread[1] + self.constant, self.index, factors)


class Costs:
    """The costs of a network and which of them are left without blocks, as arrays over its operations, layers and groups.

    Args:
        ops: The operations by name, in the order of computation.
        layers: The layers by name.
        blocks: The blocks that can be removed.
        groups: For each group its place in vectors of widths.
        output: Name of the operation that gives the logits.
    """

    def __init__(
        self,
        ops: Mapping[str, Op],
        layers: Mapping[str, Layer],
        blocks: Iterable[Block],
        groups: Mapping[str, int],
        output: str,
    ) -> None:
        self._inputs = {op.name: op.inputs for op in ops.values()}
        self._output = output
        self._compile(list(ops.values()), list(layers.values()), list(blocks), groups)

    def _compile(
        self, ops: Sequence[Op], layers: Sequence[Layer], blocks: Sequence[Block], groups: Mapping[str, int]
    ) -> None:
        self.op = {op.name: i for i, op in enumerate(ops)}
        layer = {x.name: i for i, x in enumerate(layers)}
        self.parameters = Sum(((layer[x.name], t) for x in layers for t in x.parameters), len(layers), groups)
        self.bytes_ = Sum(((layer[x.name], t) for x in layers for t in x.all_bytes), len(layers), groups)
        self.macs = Sum(((self.op[op.name], t) for op in ops for t in op.macs), len(ops), groups)
        self.activations = Sum(((self.op[op.name], op.activation) for op in ops), len(ops), groups)
        self.layer_groups = np.zeros((len(layers), len(groups)))
        for x in layers:
            for name in (g for t in x.parameters for axis in t.axes for g, _ in axis.parts):
                self.layer_groups[layer[x.name], groups[name]] = 1
        self._find_regions(ops, blocks, layer)
        edges = [(i, self.op[name]) for i, op in enumerate(ops) for name in op.inputs]
        self._users, self._used = np.array(edges, int).reshape(-1, 2).T
        self._views = [(i, self.op[op.inputs[0]]) for i, op in enumerate(ops) if op.view and op.inputs]
        self._parts = [(i, self.op[op.inputs[0]]) for i, op in enumerate(ops) if op.part]
        self._order = np.arange(len(ops))

    def _find_regions(self, ops: Sequence[Op], blocks: Sequence[Block], layer: Mapping[str, int]) -> None:
        """For each tensor that may be read in place of another: what it needs, up to the next ones that may be replaced."""
        replaceable = {block.node for block in blocks}
        self._behind: dict[str, list[str]] = {}
        self._row: dict[str, int] = {}
        needed: list[list[bool]] = []
        for start in dict.fromkeys([self._output, *replaceable, *(block.replacement for block in blocks)]):
            inside, edge, todo = {start}, dict[str, None](), [start]
            while todo:
                for name in self._inputs[todo.pop()]:
                    if name in replaceable:
                        edge[name] = None
                    elif name not in inside:
                        inside.add(name)
                        todo.append(name)
            self._behind[start] = list(edge)
            self._row[start] = len(needed)
            needed.append([op.name in inside for op in ops])
        present = np.zeros((len(ops), len(layer)))
        for i, op in enumerate(ops):
            for held in (op.layer, *op.shared):
                if held is not None and held in layer:
                    present[i, layer[held]] = 1
        self._needed = np.array(needed)
        self._needed = np.concatenate([self._needed, (self._needed @ present) > 0], 1)

    def alive(self, follow: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the operations and of the layers that are left when users of the keys of `follow` read its values."""
        seen, todo = set(), [self._output]
        while todo:
            name = todo.pop()
            while name in follow:
                name = follow[name]
            if name not in seen:
                seen.add(name)
                todo += self._behind[name]
        mask = np.asarray(self._needed[[self._row[name] for name in seen]].any(0))
        return mask[: len(self.op)], mask[len(self.op) :]

    def peak(self, alive: np.ndarray, follow: Mapping[str, str], spread: Spread) -> Polynomial:
        """Activations that take memory while each operation runs, `(ops,)`; views keep their source alive.

        A tensor takes memory from its own operation to the last one that reads it or a view of it.
        """
        stands = self._order.copy()  # for each tensor, the one that is read in its place
        for name in follow:
            instead = name
            while instead in follow:
                instead = follow[instead]
            stands[self.op[name]] = self.op[instead]
        storage = self._order.copy()
        for view, source in self._views:
            storage[view] = storage[stands[source]]
        reads = alive[self._users]
        last = self._order.copy()
        last[storage[stands[self._used[reads]]]] = self._users[reads]  # in order, so that the last one stands
        owns = alive & (storage == self._order)
        order = self._order[:, None]
        born = self._order.copy()
        for part, source in self._parts:
            born[part] = stands[source]
        held = (order >= born) & (order <= last)
        return self.activations.of((held * owns) @ self.activations.factors.T, spread)
