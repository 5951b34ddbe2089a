"""The cost model again, slow and plain: walks over dictionaries, term by term, in integers. For comparison with the arrays."""

from __future__ import annotations

from fractions import Fraction

from compress_env.surgery.graph import Channels, LayerGraph


class Plain:
    """The network without `removed` units, at widths given by name."""

    def __init__(self, graph: LayerGraph, removed):
        self.graph = graph
        units = [graph.units[u] for u in removed]
        self.follow = {u.node: u.replacement for u in units}
        self.sources = {group: source for u in units for group, source in u.sources}
        self.inputs = {op.name: [self.resolve(i) for i in op.inputs] for op in graph.ops.values()}
        self.alive, todo = set(), [self.resolve(graph.output)]
        while todo:
            name = todo.pop()
            if name not in self.alive:
                self.alive.add(name)
                todo += self.inputs[name]
        self.ops = [op for op in graph.ops.values() if op.name in self.alive]
        self.layers = [graph.layers[n] for n in graph.layers if n in {op.layer for op in self.ops}]

    def resolve(self, name: str) -> str:
        while name in self.follow:
            name = self.follow[name]
        return name

    def size(self, channels: Channels, widths: dict[str, int]) -> int:
        return channels.fixed + sum(
            r * (self.size(self.sources[g].channels, widths) if g in self.sources else widths[g])
            for g, r in channels.parts
        )

    def sum(self, terms, widths: dict[str, int]) -> Fraction:
        total = Fraction(0)
        for term in terms:
            value = Fraction(term.factor)
            for axis in term.axes:
                value *= self.size(axis, widths)
            total += value
        return total

    def usage(self, widths: dict[str, int]) -> dict[str, float]:
        parameters = self.sum((t for x in self.layers for t in x.parameters), widths)
        buffers = self.sum((t for x in self.layers for t in x.bytes_), widths)
        macs = self.sum((t for op in self.ops for t in op.macs), widths)
        return {
            "params": float(parameters),
            "macs": float(macs),
            "memory": float(4 * parameters + buffers + 4 * self.peak(widths)),
        }

    def peak(self, widths: dict[str, int]) -> int:
        storage: dict[str, str] = {}
        for op in self.ops:
            storage[op.name] = storage[self.inputs[op.name][0]] if op.view and self.inputs[op.name] else op.name
        last = {storage[i]: op.name for op in self.ops for i in self.inputs[op.name]}
        held: dict[str, int] = {}
        peak = 0
        for op in self.ops:
            if storage[op.name] == op.name:
                across = self.size(op.across, widths) if op.across else 1
                held[op.name] = op.elements * self.size(op.channels, widths) * across
            peak = max(peak, sum(held.values()))
            for name in [n for n in held if last.get(n, n) == op.name]:
                del held[name]
        return peak

    def alive_groups(self) -> set[str]:
        found, todo = set(), [axis for x in self.layers for t in x.parameters for axis in t.axes]
        while todo:
            for g, _ in todo.pop().parts:
                if g in self.sources:
                    todo.append(self.sources[g].channels)
                else:
                    found.add(g)
        return found
