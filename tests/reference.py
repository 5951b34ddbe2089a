"""The cost model again, slow and plain: walks over dictionaries, term by term, in integers. For comparison with the arrays."""

from __future__ import annotations

from fractions import Fraction

from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Channels


class Plain:
    """The network without `removed` blocks, at widths given by name."""

    def __init__(self, graph: LayerGraph, removed):
        self.graph = graph
        blocks = [graph.blocks[u] for u in removed]
        self.follow = {u.node: u.replacement for u in blocks}
        self.sources = {group: source for u in blocks for group, source in u.sources}
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


class PlainEpisode:
    """The clamped walk again, with the cost model above: each check is a whole count, the uniform keep ratio is found by halving."""

    def __init__(self, problem, limits: dict[str, float], hard: bool):
        self.problem, self.graph, self.limits, self.hard = problem, problem.graph, limits, hard
        self.rest = problem.feasible_completion(limits) if hard else problem.completions[0]
        self.removed, self.step_index, self.previous = frozenset(), 0, (0.0, 0.0)
        self.widths = {name: g.size for name, g in self.graph.groups.items()}
        self.least = {name: int(n) for name, n in zip(self.graph.groups, self.rest.widths)}

    @property
    def undecided(self) -> list:
        return self.problem.decisions[self.step_index :]

    def inactive(self) -> bool:
        decision, target = self.undecided[0], self.undecided[0].target
        network = Plain(self.graph, self.removed)
        return (
            target not in network.alive_groups()
            if decision.shrinks
            else self.graph.blocks[target].node not in network.alive
        )

    def fits(self, removed, undecided: list, open_widths: dict[str, int], **decided: int) -> bool:
        """Whether the rest fits when undecided blocks go as in the completion, and undecided groups have `open_widths`."""
        left = {d.target for d in undecided if not d.shrinks} & self.rest.removed
        shrinks = {d.target for d in undecided if d.shrinks}
        widths = self.widths | {g: open_widths[g] for g in shrinks} | decided
        usage = Plain(self.graph, removed | left).usage(widths)
        return all(usage[n] <= limit * (1 + 1e-9) for n, limit in self.limits.items())

    def allowed(self, name: str, width: int) -> int:
        g = self.graph.groups[name]
        return g.size if width >= g.size else max(g.floor, width // g.step * g.step)

    def uniform_keep_ratio(self) -> float:
        groups = self.graph.groups

        def possible(k: int) -> bool:
            even = {name: self.allowed(name, int(k / 1024 * g.size + 1e-6)) for name, g in groups.items()}
            return self.fits(self.removed, self.undecided, even)

        if possible(1024):
            return 1.0
        low, high = 0, 1024
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if possible(middle) else (low, middle)
        floors = [groups[d.target].floor / groups[d.target].size for d in self.undecided if d.shrinks]
        return max(low / 1024, min(floors, default=0.0))

    def step(self, keep: float, sparsity: float) -> None:
        target, others = self.undecided[0].target, self.undecided[1:]
        if not self.undecided[0].shrinks:
            remove = keep < 0 and not self.inactive()
            if (
                self.hard
                and not self.inactive()
                and not self.fits(self.removed | ({target} if remove else set()), others, self.least)
            ):
                remove = target in self.rest.removed
            self.removed |= {target} if remove else set()
            self.previous = (-1.0 if remove else 1.0, 0.0)
        elif self.inactive():
            self.previous = (0.0, 0.0)
        else:
            group, even = self.graph.groups[target], self.uniform_keep_ratio()
            floor = group.floor / group.size
            share = even + (1 - even) * -sparsity if sparsity < 0 else even + (floor - even) * sparsity
            width = self.allowed(target, int(share * group.size + 1e-6))
            smaller = range(width, self.least[target], -1) if self.hard else ()
            for n in smaller:  # down to the completion's, which fits
                if (n == width or (n - self.least[target]) % group.step == 0) and self.fits(
                    self.removed, others, self.least, **{target: n}
                ):
                    width = n
                    break
            else:
                width = min(width, self.least[target]) if self.hard else width
            self.widths[target] = width
            share = width / group.size
            done = (even - share) / (even - floor) if share < even else (even - share) / (1 - even) if even < 1 else 0.0
            self.previous = (0.0, max(-1.0, min(1.0, done)))
        self.step_index += 1
