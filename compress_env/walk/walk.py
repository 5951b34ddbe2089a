"""One walk over the layers: decisions, the clamp that keeps every limit reachable, and the plan that comes out. No Gymnasium here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from compress_env.errors import InfeasibleBudget, NothingToDecide, UserError
from compress_env.registry import unknown
from compress_env.resources.base import RESOURCES, amount
from compress_env.resources.cost_model import CostModel
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph, PrunedView
from compress_env.surgery.plan import Plan

SCHEDULES = ("two-step", "joint", "removal", "shrink")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """One step: whether to remove the block `target`, or how far to shrink the group `target`."""

    kind: str
    target: str


@dataclass(frozen=True)
class Completion:
    """Choices for everything: removed blocks and widths `(groups,)`, with the usage counted on the built student."""

    removed: frozenset[str]
    widths: np.ndarray
    usage: Mapping[str, float]


def decisions(graph: LayerGraph, schedule: str) -> list[Decision]:
    """The steps of an episode, always the same for a teacher. Raises NothingToDecide if there are none."""
    if schedule not in SCHEDULES:
        raise UserError(unknown("schedule", schedule, list(SCHEDULES)))
    removals = [Decision("remove", name) for name in graph.blocks]
    shrinks = [Decision("shrink", name) for name in graph.groups]
    chosen = {"two-step": removals + shrinks, "joint": removals + shrinks, "removal": removals, "shrink": shrinks}[
        schedule
    ]
    if schedule == "joint":
        position = {layer: i for i, layer in enumerate(graph.layers)}
        first = {("remove", u.name): min(position[n] for n in u.layers) for u in graph.blocks.values()}
        first |= {("shrink", g.name): position[graph.layer_of(g.layer).name] for g in graph.groups.values()}
        chosen = sorted(chosen, key=lambda d: (first[d.kind, d.target], d.kind))
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(graph.left_alone.items())[:3])
        raise NothingToDecide(f"schedule {schedule!r} leaves nothing to decide in this teacher ({reasons})")
    return chosen


class Problem:
    """What stays the same over episodes: the teacher, its graph, the cost_model, and the smallest students as a way out.

    removals: blocks to decide on. shrinks: mask `(groups,)` of those to decide on. floors: for each step, and for the end, the
    smallest share that a group still undecided may keep; 0 if there is none.
    """

    def __init__(self, teacher: nn.Module, graph: LayerGraph, cost_model: CostModel, schedule: str):
        self.teacher, self.graph, self.cost_model = teacher, graph, cost_model
        self.decisions = decisions(graph, schedule)
        self.removals = frozenset(d.target for d in self.decisions if d.kind == "remove")
        shrinks = [d.target if d.kind == "shrink" else None for d in self.decisions]
        self.shrinks = np.array([name in shrinks for name in graph.groups], bool)
        floors = [graph.groups[name].floor / graph.groups[name].size if name else np.inf for name in shrinks]
        least = [min(floors[i:], default=np.inf) for i in range(len(floors) + 1)]
        self.floors = [share if share < np.inf else 0.0 for share in least]
        may_remove, may_shrink = schedule != "shrink", schedule != "removal"
        floor = graph.floor if may_shrink else graph.full
        everything = frozenset(graph.blocks)
        self.completions = []
        for removed in [everything, frozenset()] if may_remove else [frozenset()]:
            plan = graph.canonical(removed, floor)
            usage = cost_model.count(build_student(teacher, graph, plan), plan)
            self.completions.append(Completion(frozenset(plan.removed), floor, usage))

    def smallest(self, name: str) -> float:
        """The smallest reachable usage of a resource, in its unit."""
        return min(c.usage[name] for c in self.completions)

    def way_out(self, limits: Mapping[str, float]) -> Completion:
        """A completion within all limits. Raises InfeasibleBudget that names the smallest reachable usage of each."""
        for completion in self.completions:
            predicted = self.cost_model.predict_all(completion.removed, completion.widths)
            if all(max(completion.usage[n], predicted[n]) <= limit for n, limit in limits.items()):
                return completion
        parts = []
        for name, limit in limits.items():
            least, teacher = self.smallest(name), self.cost_model.teacher[name]
            parts.append(
                f"{name} of {amount(limit)} {RESOURCES.get(name).unit} ({limit / teacher:.1%} of the teacher); "
                f"the smallest reachable is {amount(least)} ({least / teacher:.1%})"
            )
        raise InfeasibleBudget(f"the budget cannot be met: {'; '.join(parts)}")


class Walk:
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
        self.widths = self.graph.full.copy()
        self.previous = (0.0, 0.0)
        # What a check needs, kept up to date: limits with room for rounding; what is left if undecided blocks go as in the way out;
        # the widths decided so far, with those of the way out for the rest; and with those of all even shares for the rest.
        self._within = {name: limit * (1 + _ROUNDING) for name, limit in limits.items()}
        self._undecided = problem.removals
        self._complete = self._completed(self.removed)
        self._smallest = np.where(problem.shrinks, self.rest.widths, self.graph.full)
        self._even = np.where(problem.shrinks[:, None], self.graph.levels[0], self.graph.full[:, None])
        self._share: float | None = None

    @property
    def done(self) -> bool:
        return self.step_index == len(self.problem.decisions)

    @property
    def current(self) -> Decision:
        return self.problem.decisions[self.step_index]

    @property
    def network(self) -> PrunedView:
        """What is left of the teacher, with undecided blocks kept."""
        return self.graph.view(self.removed)

    def void(self, decision: Decision) -> bool:
        """Whether there is nothing left to decide, because the layer has gone with a block removed before."""
        if decision.kind == "shrink":
            return not self.network.alive[self.graph.group_index[decision.target]]
        return not self.network.has(self.graph.blocks[decision.target].node)

    def _completed(self, removed: frozenset[str]) -> PrunedView:
        """What is left if what is undecided is as in the way out."""
        return self.graph.view(removed | (self.rest.removed & self._undecided))

    def step(self, keep: float, sparsity: float) -> None:
        """Decide the current step; both actions in [-1, 1]. What is not asked for is ignored."""
        decision = self.current
        if decision.kind == "remove":
            self._remove(decision.target, keep >= 0)
        else:
            self._shrink(decision.target, sparsity)
        self.step_index += 1
        self._share = None

    def _remove(self, block: str, keep: bool) -> None:
        void = self.void(self.current)
        keep = keep or void
        self._undecided = self._undecided - {block}
        removed = self.removed if keep else self.removed | {block}
        complete = self._completed(removed)
        departs = not void and keep == (block in self.rest.removed)
        if self.hard and departs and not self.problem.cost_model.fits(complete, self._smallest, self._within):
            keep = not keep
            removed = self.removed if keep else self.removed | {block}
            complete = self._completed(removed)
        self.removed, self._complete = removed, complete
        self.previous = (1.0 if keep else -1.0, 0.0)

    def _shrink(self, name: str, sparsity: float) -> None:
        i = self.graph.group_index[name]
        if self.void(self.current):
            width, self.previous = int(self.widths[i]), (0.0, 0.0)
        else:
            group, even = self.graph.groups[name], self.uniform_keep_ratio()
            floor = group.floor / group.size
            share = even + (1 - even) * -sparsity if sparsity < 0 else even + (floor - even) * sparsity
            width = group.allowed(int(share * group.size + 1e-6))
            if self.hard:
                width = self._largest(i, group.step, width)
            done = self.sparsity(width / group.size, even, floor)
            self.previous = (0.0, min(max(done, -1.0), 1.0))
        self.widths[i] = self._smallest[i] = self._even[i] = width

    @staticmethod
    def sparsity(share: float, even: float, floor: float) -> float:
        """The action that gives this share of channels."""
        if share >= even:
            return -(share - even) / (1 - even) if even < 1 else 0.0
        return (even - share) / (even - floor)

    def _largest(self, i: int, step: int, width: int) -> int:
        """The largest width of group i up to `width` with which the rest can still fit; at least that of the way out."""
        cost_model, low = self.problem.cost_model, int(self.rest.widths[i])
        if width <= low:
            return width
        widths = self._smallest.copy()
        widths[i] = width
        if cost_model.fits(self._complete, widths, self._within):
            return width
        smaller = np.arange(low, width, step)  # the first is possible, since the way out is
        columns = np.repeat(widths[:, None], len(smaller), 1)
        columns[i] = smaller
        return int(smaller[max(0, cost_model.last_fitting(self._complete, columns, self._within))])

    def uniform_keep_ratio(self) -> float:
        """The largest share of channels, the same for all groups still undecided, that meets the limits; at most 1.

        It is the centre of the action: 0 means this share, so that the untrained policy gives the uniform student at the budget.
        """
        if self._share is None:
            last = self.problem.cost_model.last_fitting(self._complete, self._even, self._within)
            share = float(self.graph.levels[1][last]) if last >= 0 else 0.0
            self._share = max(share, self.problem.floors[self.step_index])
        return self._share

    def finish(self) -> tuple[Plan, fx.GraphModule, dict[str, float]]:
        """The plan, its student and the usage counted on it, within every limit if they are hard.

        Where a limited resource is measured, a student that misses is changed; if no change helps, it is that of the way out.
        """
        problem = self.problem
        if self.hard:
            found = problem.cost_model.repair(
                self.removed, self.widths, self.limits, removable=problem.removals, shrinkable=problem.shrinks,
                smallest=self.rest.widths,
            )  # fmt: skip
            if found is not None:
                return found
        removed, widths = (self.rest.removed, self.rest.widths) if self.hard else (self.removed, self.widths)
        plan = self.graph.canonical(removed, widths)
        student = build_student(problem.teacher, self.graph, plan)
        return plan, student, dict(self.rest.usage) if self.hard else problem.cost_model.count(student, plan)
