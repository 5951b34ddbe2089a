"""One walk over the layers: decisions, the clamp that keeps every limit reachable, and the plan that comes out. No Gymnasium here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from compress_env.envs.send_back import finished
from compress_env.errors import InfeasibleBudget, NothingToDecide, UserError
from compress_env.registry import unknown
from compress_env.resources.budget import RESOURCES, Meter, amount
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import StudentPlan

SCHEDULES = ("two-step", "joint", "removal", "shrink")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """One step: whether to remove the unit `target`, or how far to shrink the group `target`."""

    kind: str
    target: str


@dataclass(frozen=True)
class Completion:
    """Choices for everything: removed units and widths `(groups,)`, with the usage counted on the built student."""

    removed: frozenset[str]
    widths: np.ndarray
    usage: Mapping[str, float]


def decisions(graph: LayerGraph, schedule: str) -> list[Decision]:
    """The steps of an episode, always the same for a teacher. Raises NothingToDecide if there are none."""
    if schedule not in SCHEDULES:
        raise UserError(unknown("schedule", schedule, list(SCHEDULES)))
    removals = [Decision("remove", name) for name in graph.units]
    shrinks = [Decision("shrink", name) for name in graph.groups]
    chosen = {"two-step": removals + shrinks, "joint": removals + shrinks, "removal": removals, "shrink": shrinks}[
        schedule
    ]
    if schedule == "joint":
        position = {layer: i for i, layer in enumerate(graph.layers)}
        first = {("remove", u.name): min(position[n] for n in u.layers) for u in graph.units.values()}
        first |= {("shrink", g.name): position[graph.layer_of(g.layer).name] for g in graph.groups.values()}
        chosen = sorted(chosen, key=lambda d: (first[d.kind, d.target], d.kind))
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(graph.left_alone.items())[:3])
        raise NothingToDecide(f"schedule {schedule!r} leaves nothing to decide in this teacher ({reasons})")
    return chosen


class Problem:
    """What stays the same over episodes: the teacher, its graph, the meter, and the smallest students as a way out."""

    def __init__(self, teacher: nn.Module, graph: LayerGraph, meter: Meter, schedule: str):
        self.teacher, self.graph, self.meter = teacher, graph, meter
        self.decisions = decisions(graph, schedule)
        may_remove, may_shrink = schedule != "shrink", schedule != "removal"
        floor = graph.floor if may_shrink else graph.full
        everything = frozenset(graph.units)
        self.completions = []
        for removed in [everything, frozenset()] if may_remove else [frozenset()]:
            plan = graph.canonical(removed, floor)
            usage = meter.count(build_student(teacher, graph, plan), plan)
            self.completions.append(Completion(frozenset(plan.removed), floor, usage))

    def smallest(self, name: str) -> float:
        """The smallest reachable usage of a resource, in its unit."""
        return min(c.usage[name] for c in self.completions)

    def way_out(self, limits: Mapping[str, float]) -> Completion:
        """A completion within all limits. Raises InfeasibleBudget that names the smallest reachable usage of each."""
        for completion in self.completions:
            predicted = self.meter.predict_all(completion.removed, completion.widths)
            if all(max(completion.usage[n], predicted[n]) <= limit for n, limit in limits.items()):
                return completion
        parts = []
        for name, limit in limits.items():
            least, teacher = self.smallest(name), self.meter.teacher[name]
            parts.append(
                f"{name} of {amount(limit)} {RESOURCES.get(name).UNIT} ({limit / teacher:.1%} of the teacher); "
                f"the smallest reachable is {amount(least)} ({least / teacher:.1%})"
            )
        raise InfeasibleBudget(f"the budget cannot be met: {'; '.join(parts)}")


class Episode:
    """The state of one walk. `limits` are absolute; with `hard`, every step is clamped so that the way out stays open.

    The clamp is AMC's algorithm 1 (He et al., ECCV 2018), generalised: what is still undecided is taken from a completion that is
    known to fit, and an action stands only if the whole then fits, whatever the resource. So at each step at least one choice fits.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, float], hard: bool):
        self.problem, self.limits, self.hard = problem, dict(limits), hard
        self.graph = problem.graph
        self.rest = problem.way_out(limits) if hard else problem.completions[0]
        self.step_index = 0
        self.removed: frozenset[str] = frozenset()
        self.undecided_removals = frozenset(d.target for d in problem.decisions if d.kind == "remove")
        self.decided = np.ones(len(self.graph.groups), bool)
        for d in problem.decisions:
            if d.kind == "shrink":
                self.decided[self.graph.group_index[d.target]] = False
        self.widths = self.graph.full.copy()
        self.previous = (0.0, 0.0)

    @property
    def done(self) -> bool:
        return self.step_index == len(self.problem.decisions)

    @property
    def current(self) -> Decision:
        return self.problem.decisions[self.step_index]

    def void(self, decision: Decision) -> bool:
        """Whether there is nothing left to decide, because the layer has gone with a unit removed before."""
        network = self.graph.reduce(self.removed)
        if decision.kind == "shrink":
            return decision.target not in network.alive_groups
        return self.graph.units[decision.target].node not in {op.name for op in network.ops}

    def completed(self, removed: frozenset[str] | None = None, widths: np.ndarray | None = None):
        """Removed units and widths if what is undecided is as in the way out."""
        removed = self.removed if removed is None else removed
        widths = self.widths if widths is None else widths
        return (
            removed | (self.rest.removed & self.undecided_removals),
            np.where(self.decided, widths, self.rest.widths),
        )

    def fits(self, removed: frozenset[str], widths: np.ndarray) -> bool:
        network = self.graph.reduce(removed)
        meter = self.problem.meter
        return all(meter.predict(n, network, widths) <= limit * (1 + _ROUNDING) for n, limit in self.limits.items())

    def step(self, keep: float, sparsity: float) -> None:
        """Decide the current step; both actions in [-1, 1]. What is not asked for is ignored."""
        decision = self.current
        if decision.kind == "remove":
            self._remove(decision.target, keep >= 0)
        else:
            self._shrink(decision.target, sparsity)
        self.step_index += 1

    def _remove(self, unit: str, keep: bool) -> None:
        if self.void(self.current):
            keep = True
        elif self.hard:
            before = self.undecided_removals
            self.undecided_removals = before - {unit}
            if not self.fits(*self.completed(self.removed | (set() if keep else {unit}))):
                keep = unit not in self.rest.removed
        self.undecided_removals = self.undecided_removals - {unit}
        if not keep:
            self.removed = self.removed | {unit}
        self.previous = (1.0 if keep else -1.0, 0.0)

    def _shrink(self, name: str, sparsity: float) -> None:
        i = self.graph.group_index[name]
        group = self.graph.groups[name]
        if self.void(self.current):
            self.decided[i] = True
            self.previous = (0.0, 0.0)
            return
        even = self.even_share()
        floor = group.floor / group.size
        share = even + (1 - even) * -sparsity if sparsity < 0 else even + (floor - even) * sparsity
        wish = self.widths.copy()
        wish[i] = np.floor(share * group.size + 1e-6)
        width = int(self.graph.allowed(wish)[i])
        if self.hard:
            width = self._largest(i, width)
        self.widths[i] = width
        self.decided[i] = True
        self.previous = (0.0, float(np.clip(self.sparsity(width / group.size, even, floor), -1, 1)))

    @staticmethod
    def sparsity(share: float, even: float, floor: float) -> float:
        """The action that gives this share of channels."""
        if share >= even:
            return -(share - even) / (1 - even) if even < 1 else 0.0
        return (even - share) / (even - floor)

    def _largest(self, i: int, width: int) -> int:
        """The largest width up to `width` with which the rest can still fit; at least that of the way out."""
        before = self.decided[i]
        self.decided[i] = True
        trial = self.widths.copy()

        def possible(n: int) -> bool:
            trial[i] = n
            return self.fits(*self.completed(widths=trial))

        low, step = int(self.rest.widths[i]), list(self.graph.groups.values())[i].step
        if width <= low or possible(width):
            result = width
        else:
            smaller = range(low, width, step)  # the first is possible, since the way out is
            result = smaller[bisect_left(smaller, True, lo=1, key=lambda n: not possible(n)) - 1]
        self.decided[i] = before
        return result

    def even_share(self) -> float:
        """The largest share of channels, the same for all groups still undecided, that meets the limits; at most 1.

        It is the centre of the action: 0 means this share, so that the untrained policy gives the uniform student at the budget.
        """
        removed = self.removed | (self.rest.removed & self.undecided_removals)
        open_groups = ~self.decided
        full, floor = self.graph.full, self.graph.floor

        def widths(share: float) -> np.ndarray:
            return np.where(open_groups, self.graph.allowed(np.floor(share * full + 1e-6)), self.widths)

        low, high = 0.0, 1.0
        if self.fits(removed, widths(1.0)):
            return 1.0
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fits(removed, widths(middle)) else (low, middle)
        smallest = float((floor / full)[open_groups].min()) if open_groups.any() else 0.0
        return max(low, smallest)

    def finish(self) -> tuple[StudentPlan, fx.GraphModule, dict[str, float]]:
        """The plan, its student and the usage counted on it, within every limit if they are hard.

        Latency is measured, not computed; a student that misses is sent back (`envs/send_back.py`).
        """
        return finished(self.problem, self.removed, self.widths, self.limits if self.hard else None, self.rest)
