"""Groups: channels that behave alike everywhere in the network, so that only how many of them stay matters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import nn

from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.ir import Channels, Group, Member, constant
from compress_env.surgery.ranking.magnitude import channel_scores
from compress_env.surgery.rules import rule_of


class Grouping:
    """The groups of a network, and how its axes are made of them.

    sides: numbers `(features,)` of every side of a layer, in the order of computation. axes: those of every other axis that runs
    over channels; two channels are of one group if they occur equally often on each side and axis.
    """

    def __init__(self, flow: ChannelFlow, modules: dict[str, nn.Module], axes: list[np.ndarray]) -> None:
        self.ties = flow.ties
        self.sides = {key: numbers for key, numbers in flow.sides.items() if numbers is not None}
        for name, ids in flow.parameters.items():
            for d, numbers in flow.axes([ids]).items():
                self.sides[name, str(d)] = numbers
        self.rows: dict[tuple[str, str], np.ndarray] = {}
        for name, every in flow.along.items():
            for d, numbers in flow.axes(every).items():
                self.rows[name, str(d)] = numbers if d else numbers[: len(numbers) // 2]  # of one of the two examples
        self.modules = modules
        self.of = np.full(len(self.ties.parent), -1)  # group of each number's root, -1 if it stays
        self.index = np.zeros(len(self.ties.parent), int)  # channel of its group
        self.sizes: dict[str, int] = {}
        self._find([*self.sides.values(), *axes])
        self.names = list(self.sizes)

    def _find(self, vectors: list[np.ndarray]) -> None:
        signature = np.zeros(len(self.of), np.uint64)
        marks = np.random.default_rng(0).integers(1, 2**63, len(vectors), np.uint64)
        with np.errstate(over="ignore"):
            for mark, numbers in zip(marks, vectors):
                roots, counts = np.unique(self.ties.find(numbers), return_counts=True)
                signature[roots] += mark * counts.astype(np.uint64)
        seen: dict[int, list[int]] = {}
        owner: dict[int, str] = {}
        placed: set[int] = set()
        for (layer, side), numbers in self.sides.items():
            if side not in rule_of(self.modules.get(layer)).produces:
                continue
            for root in self.ties.find(numbers).tolist():
                if root not in placed:
                    placed.add(root)
                    if root not in self.ties.fixed:
                        key = int(signature[root])
                        owner.setdefault(key, layer)
                        seen.setdefault(key, []).append(root)
        for key, own in seen.items():
            if len(own) == 1:
                continue
            name, n = owner[key], 2
            while name in self.sizes:
                name, n = f"{owner[key]}#{n}", n + 1
            self.of[own] = len(self.sizes)
            self.index[own] = np.arange(len(own))
            self.sizes[name] = len(own)

    def positions(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each number its group, -1 if its channel stays, and its channel within the group."""
        roots = self.ties.find(numbers)
        return self.of[roots], self.index[roots]

    def channels(self, numbers: np.ndarray | None, size: int) -> Channels:
        """An axis of `size` as channels of groups; `numbers` is None for a fixed one."""
        if numbers is None:
            return Channels((), size)
        groups, _ = self.positions(numbers)
        parts = []
        for g in dict.fromkeys(groups[groups >= 0].tolist()):
            repeats, rest = divmod(int((groups == g).sum()), self.sizes[self.names[g]])
            assert not rest, f"channels of {self.names[g]} appear unevenly"
            parts.append((self.names[g], repeats))
        return Channels(tuple(parts), int((groups < 0).sum()))

    def axis(self, length: np.ndarray | int) -> Channels:
        """An axis given by its channel numbers, or by a size that stays."""
        return self.channels(None, length) if isinstance(length, int) else self.channels(length, len(length))

    def groups(self, min_width: float, multiple: int) -> dict[str, Group]:
        """The groups with what they consist of; at least `min_width` of each stays, in multiples of `multiple` channels."""
        members, rows = self._members(self.sides), self._members(self.rows)
        result = {}
        for g, own in members.items():
            name = self.names[g]
            size = self.sizes[name]
            produced = next(m for m in own if m.layer == name.partition("#")[0] and m.side in rule_of(self.modules[m.layer]).produces)
            step = multiple // math.gcd(multiple, len(produced.position) // size)
            floor = min(size, math.ceil(max(1, round(min_width * size)) / step) * step)
            importance = constant(channel_scores(self.modules, own, size))
            result[name] = Group(name, size, tuple(own), importance, floor, step, tuple(rows.get(g, ())))
        return {name: result[name] for name in self.names}

    def _members(self, sides: Mapping[tuple[str, str], np.ndarray]) -> dict[int, list[Member]]:
        """By group, the features of sides that follow it."""
        members: dict[int, list[Member]] = {}
        for (layer, side), numbers in sides.items():
            groups, index = self.positions(numbers)
            for g in np.unique(groups[groups >= 0]).tolist():
                position = np.flatnonzero(groups == g)
                members.setdefault(g, []).append(Member(layer, side, position, index[position]))
        return members

    def left_alone(self) -> dict[str, str]:
        """Layers that cannot be shrunk at all, with the reason."""
        reasons: dict[str, str] = {}
        shrinking = set()
        for (layer, side), numbers in self.sides.items():
            if side not in rule_of(self.modules.get(layer)).produces:
                continue
            if (self.positions(numbers)[0] >= 0).any():
                shrinking.add(layer)
            else:
                reasons[layer] = self.ties.reason(numbers) or "its channels can only stay or go together"
        return {layer: reason for layer, reason in reasons.items() if layer not in shrinking}
