"""`Allocator`: the plan that loses least within limits, by what each of its decisions costs alone.

The loss of a plan is predicted as the sum of its parts' (as in SPDY, Frantar & Alistarh, ICML 2022). What a plan uses is no sum: a
convolution costs inputs times outputs. So costs are tabulated beside a reference plan, one decision changed at a time, and at a price
of the budget each decision is taken alone; the lowest price is looked for at which the plan, counted exactly, fits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.decisions import Decision
from compress_env.evaluation import CAPACITY, proxy_score
from compress_env.problem import Problem
from compress_env.surgery.graph import LayerGraph, PrunedView
from compress_env.surgery.ir import Group

LEVELS = 40
"""Widths of a group that are weighed against each other, at most; what is left of the budget then goes to those between."""
PRICES, NARROWED = 32, 8
"""Prices that are tried over five orders of magnitude, and then between the two that the right one lies between."""
SPAN = 5.0
"""Logarithm of how far the first prices reach to either side of the reference's."""
ROUNDS = 6
"""References that are made of the one before, until nothing changes."""
RELUCTANCE = (1.0, 0.3, 3.0, 1e9)
"""Factors on what removing blocks loses, in looking for a reference: it may be worth it only together with narrower groups."""
FACTORS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
GROWTH, CORNERS = 1.1, 16
"""How far apart weights may be, for the predicted KL to grow on average by at most this factor where each is the largest or the
smallest: the sum of losses knows little of what lies farther from the plan that it is lowest for."""
REMEMBERED = 1000
ROUNDING = 1e-13
"""Relative error of what is predicted; less than 1 for all that is counted in whole numbers, up to 1e13."""

Usage = Callable[[PrunedView, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Allocation:
    """A plan by its parts.

    Attributes:
        removed: Blocks that go.
        widths: Channels that the groups keep, `(groups,)`; those of groups that went with a block make no difference.
    """

    removed: frozenset[str]
    widths: np.ndarray

    def kept(self, decision: Decision, graph: LayerGraph) -> float:
        """What is kept of a decision's target, in [0, 1]: of a block all or nothing, of a group a share of its channels."""
        view = graph.view(self.removed)
        if not decision.shrinks:
            return float(view.has(graph.blocks[decision.target].node))
        i = graph.group_index[decision.target]
        return float(self.widths[i] / graph.full[i]) if view.alive[i] else 0.0


@dataclass(frozen=True, eq=False)
class Reference:
    """The allocation for some limits, with what it costs to depart from it.

    Attributes:
        allocation: The plan, to which `solve` leads with weights of 1.
        limits: By resource, in its unit.
        price: Loss that a unit of cost is worth, about which others are tried.
        capacity: Loss that a share of the parameters is worth.
        cost: Of each group at each of its levels, less that at the plan before, `(groups, levels)`: usage as a share of the limits.
        params: Likewise, as a share of the teacher's parameters.
        block_cost: What each block costs, `(blocks,)`.
        block_params: Likewise.
        alternatives: The best plan with each set of removed blocks that was come across, this one first.
        reluctance: What the loss of each decision was multiplied by to find the plan, `(steps,)`.
    """

    allocation: Allocation
    limits: Mapping[str, float]
    price: float
    capacity: float
    cost: np.ndarray
    params: np.ndarray
    block_cost: np.ndarray
    block_params: np.ndarray
    alternatives: tuple[Allocation, ...] = ()
    reluctance: np.ndarray | float = 1.0


class Allocator:
    """Allocates the budgets of one problem.

    Args:
        problem: The problem.
        sensitivities: What each decision costs alone.

    Attributes:
        shrinks: Which of the problem's decisions are about groups, `(steps,)`.
    """

    def __init__(self, problem: Problem, sensitivities: Sensitivities):
        self.problem, self.graph, self.cost_model = problem, problem.graph, problem.cost_model
        groups = self.graph.groups.values()
        self._blocks = [d.target for d in problem.decisions if not d.shrinks]
        self._block_index = {name: i for i, name in enumerate(self._blocks)}
        self._rows = np.arange(len(groups))
        self._steps = [g.step for g in groups]
        every = [_levels(g) if may else np.array([g.size]) for g, may in zip(groups, problem.shrinkable)]
        most = max(map(len, every), default=1)
        self._levels = np.array([np.append(x, np.full(most - len(x), x[-1])) for x in every], int).reshape(len(groups), most)
        self._curves = np.zeros((len(groups), max((g.size for g in groups), default=0) + 1))
        for i, (name, g) in enumerate(self.graph.groups.items()):
            self._curves[i, : g.size + 1] = sensitivities.curve(name, g.size)
        self._loss = self._curves[self._rows[:, None], self._levels]
        self._block_loss = np.array([sensitivities.blocks[name] for name in self._blocks])
        whole = self.graph.view(frozenset()).alive
        inner = [whole & ~self.graph.view(frozenset([name])).alive for name in self._blocks]
        self._inner = np.array(inner, float).reshape(len(self._blocks), len(groups))
        self._place = [self._block_index[d.target] if not d.shrinks else self.graph.group_index[d.target] for d in problem.decisions]
        self.shrinks = np.array([d.shrinks for d in problem.decisions], bool)
        self._references: dict[tuple, Reference] = {}
        self._factors: dict[tuple, float] = {}
        self._parts: dict[frozenset[str], tuple[list[int], np.ndarray]] = {}

    def kl(self, plan: Allocation) -> float:
        """The predicted KL of a plan in nats: the sum of what its parts cost alone. A part that went with a block counts once."""
        blocks, alive = self._parts_of(plan.removed)
        return float(self._block_loss[blocks].sum() + self._curves[self._rows, plan.widths][alive].sum())

    def _parts_of(self, removed: frozenset[str]) -> tuple[list[int], np.ndarray]:
        """Of removed blocks the indices of those that lie in no other one, and the mask of the groups that are left; remembered."""
        if (known := self._parts.get(removed)) is None:
            if len(self._parts) > REMEMBERED:
                self._parts.clear()
            outermost = self.graph.canonical(removed, self.graph.full).removed
            known = self._parts[removed] = ([self._block_index[name] for name in outermost], self.graph.view(removed).alive)
        return known

    def size(self, plan: Allocation) -> float:
        """Share of the teacher's parameters."""
        used = self.cost_model.predict("params", self.graph.view(plan.removed), plan.widths)
        return float(used / self.cost_model.teacher["params"])

    def score(self, plan: Allocation) -> float:
        """The predicted `proxy_score`, in [0, 1]."""
        return proxy_score(self.kl(plan), self.size(plan))

    def reference(self, limits: Mapping[str, float]) -> Reference:
        """The allocation for limits, by resource in its unit; remembered.

        Raises:
            InfeasibleBudget: If they cannot be met.
        """
        key = tuple(limits.items())
        if key not in self._references:
            if len(self._references) > REMEMBERED:
                self._references.clear()
            self._references[key] = self._best_reference(limits)
        return self._references[key]

    def _best_reference(self, limits: Mapping[str, float]) -> Reference:
        start, found = self._start(limits), list[Reference]()
        for reluctance in RELUCTANCE if self._blocks else RELUCTANCE[:1]:
            weights = np.where(self.shrinks, 1.0, reluctance)
            tables = self._tables(start, limits, 1.0)
            for _ in range(ROUNDS):
                before = tables.allocation
                plan, price = self._solve(tables, weights)
                # With the very tables that the plan was found by, so that weights of 1 lead to it again.
                found.append(replace(tables, allocation=plan, reluctance=weights))
                if plan.removed == before.removed and np.array_equal(plan.widths, before.widths):
                    break
                tables = self._tables(plan, limits, price)
        found.sort(key=lambda each: self.score(each.allocation))
        others = {each.allocation.removed: each.allocation for each in found}  # the best of each set of removed blocks
        others.pop(found[-1].allocation.removed)
        return replace(found[-1], alternatives=(found[-1].allocation, *reversed(others.values())))

    def factor(self, reference: Reference) -> float:
        """How many times more the loss of one decision may count than that of another: the largest of FACTORS that GROWTH allows.

        Args:
            reference: Of the limits; it is found once for them.

        Returns:
            The factor, the smallest of FACTORS if GROWTH allows none.
        """
        key = tuple(reference.limits.items())
        if key not in self._factors:
            if len(self._factors) > REMEMBERED:
                self._factors.clear()
            corners = np.random.default_rng(0).choice((-1.0, 1.0), (CORNERS, len(self.shrinks)))
            most = GROWTH * self.kl(reference.allocation)

            def grows(factor: float) -> bool:
                losses = [self.kl(self.solve(reference, self.weights(corner, factor))) for corner in corners]
                return bool(np.mean(losses) > most)

            self._factors[key] = FACTORS[max(bisect_left(FACTORS, True, key=grows) - 1, 0)]
        return self._factors[key]

    def weights(self, more: np.ndarray, factor: float) -> np.ndarray:
        """What the loss of each decision is multiplied by, `(steps,)`.

        Args:
            more: By how much its target is to be kept rather than others of its kind, `(steps,)` in [-1, 1]. Only differences count:
                the mean of the kind is taken away.
            factor: What 1 stands for.
        """
        for kind in (self.shrinks, ~self.shrinks):
            if kind.any():
                more = np.where(kind, more - more[kind].mean(), more)
        return factor**more

    def _start(self, limits: Mapping[str, float]) -> Allocation:
        """The uniform plan, or the smallest if there is none."""
        completion = self.problem.feasible_completion(limits)
        columns = self.problem.uniform_columns
        last = self.cost_model.last_fitting(self.graph.view(frozenset()), columns, limits)
        return Allocation(completion.removed, completion.widths) if last < 0 else Allocation(frozenset(), columns[:, last])

    def _tables(self, plan: Allocation, limits: Mapping[str, float], price: float) -> Reference:
        """What it costs to depart from a plan, one decision at a time."""
        full = np.array([self.cost_model.teacher[name] / limit for name, limit in limits.items()])
        share = full / full.sum() / np.array(list(limits.values()))  # tight limits weigh most
        names = [*limits, "params"]
        mix = np.zeros((2, len(names)))
        mix[0, :-1], mix[1, -1] = share, 1 / self.cost_model.teacher["params"]

        def usage(view: PrunedView, widths: np.ndarray) -> np.ndarray:
            return mix @ np.array([self.cost_model.predict_many(name, view, widths) for name in names])

        here = plan.widths[:, None]
        view = self.graph.view(plan.removed)
        tables = np.zeros((2, *self._levels.shape))
        blocks = np.zeros((2, len(self._blocks)))
        own = usage(view, here)
        self._fill(tables, plan, view, usage, own, view.alive)
        for i, name in enumerate(self._blocks):
            if name in plan.removed:
                other = self.graph.view(plan.removed - {name})
                there = usage(other, here)
                blocks[:, i] = (there - own)[:, 0]
                self._fill(tables, plan, other, usage, there, other.alive & ~view.alive)
            else:
                blocks[:, i] = (own - usage(self.graph.view(plan.removed | {name}), here))[:, 0]
        # d log KL = CAPACITY d log size where the score stays the same
        capacity = CAPACITY * self.kl(plan) / self.size(plan)
        return Reference(plan, dict(limits), price, capacity, *tables, *blocks)

    def _fill(self, tables: np.ndarray, plan: Allocation, view: PrunedView, usage: Usage, own: np.ndarray, which: np.ndarray) -> None:
        """What some groups cost at each level, all else as in the plan, less what the plan costs."""
        groups, levels = np.flatnonzero(which & self.problem.shrinkable), self._levels.shape[1]
        if not len(groups):
            return
        columns = np.repeat(plan.widths[:, None], len(groups) * levels, 1)
        columns[np.repeat(groups, levels), np.arange(len(groups) * levels)] = self._levels[groups].ravel()
        tables[:, groups] = (usage(view, columns) - own).reshape(2, len(groups), levels)

    def solve(self, reference: Reference, weights: np.ndarray) -> Allocation:
        """The plan within the reference's limits that loses least where each decision's loss is multiplied by a weight.

        Args:
            reference: Of the limits.
            weights: One for each decision of the problem, `(steps,)`; 1 everywhere gives the reference's own plan.

        Returns:
            The plan; all limits that can be predicted are met.
        """
        return self._solve(reference, reference.reluctance * weights)[0]

    def _solve(self, reference: Reference, weights: np.ndarray) -> tuple[Allocation, float]:
        """The plan, and the price at which it was found."""
        of_groups, of_blocks = np.ones(len(self._rows)), np.ones(len(self._blocks))
        for place, shrinks, weight in zip(self._place, self.shrinks, weights):
            (of_groups if shrinks else of_blocks)[place] = weight
        loss = of_groups[:, None] * self._loss - reference.capacity * reference.params
        block_loss = of_blocks * self._block_loss
        prices = reference.price * np.exp(np.linspace(-SPAN, SPAN, PRICES))
        removed, levels = self._at_prices(reference, loss, block_loss, prices)
        first = self._first_fitting(reference.limits, removed, levels)
        last_price = float(prices[min(first, len(prices) - 1)])
        # The blocks that go may change at that price, and much cost with them: those on both sides of it are tried.
        tried = {self._names(removed[i]): None for i in (first, first - 1) if 0 <= i < len(prices)}
        best, least = None, np.inf
        for gone in tried:
            found = self._widths(reference, gone, loss, levels, prices, of_groups)
            if found is None:
                continue
            plan = Allocation(gone, found)
            lost = self._weighted(plan, of_groups, of_blocks) - reference.capacity * self.size(plan)
            if lost < least:
                best, least = plan, lost
        return best or self._fallback(reference), last_price

    def _widths(
        self, reference: Reference, gone: frozenset[str], loss: np.ndarray, levels: np.ndarray, prices: np.ndarray, weights: np.ndarray
    ) -> np.ndarray | None:
        """The widths `(groups,)` that fit without these blocks and lose least; None if none of those at the prices fit."""
        view, within = self.graph.view(gone), {name: limit * (1 + ROUNDING) for name, limit in reference.limits.items()}
        for narrowed in (False, True):
            columns = self._levels[self._rows[:, None], levels.T]
            fitting = self.cost_model.last_fitting(view, columns[:, ::-1], within)
            if fitting < 0:
                return None
            first = len(prices) - 1 - fitting
            if first == 0 or narrowed:
                break
            prices = np.exp(np.linspace(np.log(prices[first - 1]), np.log(prices[first]), NARROWED + 1))
            levels = (loss + prices[:, None, None] * reference.cost).argmin(2)
        level, larger = levels[first], levels[max(first - 1, 0)]
        widths = self._levels[self._rows, level]
        for target in (larger, np.minimum(level + 1, self._levels.shape[1] - 1)):
            widths = self._spend(reference, gone, widths, self._levels[self._rows, target], weights)
        return widths

    def _weighted(self, plan: Allocation, of_groups: np.ndarray, of_blocks: np.ndarray) -> float:
        """The weighted sum of what a plan's parts lose."""
        blocks, alive = self._parts_of(plan.removed)
        groups = of_groups * self._curves[self._rows, plan.widths]
        return float((of_blocks * self._block_loss)[blocks].sum() + groups[alive].sum())

    def _at_prices(
        self, reference: Reference, loss: np.ndarray, block_loss: np.ndarray, prices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """At each price, which blocks go `(prices, blocks)` and the levels of the groups `(prices, groups)`."""
        total = loss + prices[:, None, None] * reference.cost
        levels = total.argmin(2)
        least = np.take_along_axis(total, levels[:, :, None], 2)[:, :, 0]
        kept = prices[:, None] * reference.block_cost - reference.capacity * reference.block_params + least @ self._inner.T
        return kept > block_loss, levels

    def _names(self, mask: np.ndarray) -> frozenset[str]:
        return frozenset(name for name, gone in zip(self._blocks, mask.tolist()) if gone)

    def _first_fitting(self, limits: Mapping[str, float], removed: np.ndarray, levels: np.ndarray) -> int:
        """The first of the plans, each of which uses less than the one before, that fits; their number if none does."""
        within = {name: limit * (1 + ROUNDING) for name, limit in limits.items()}
        low, high = 0, len(levels)
        while low < high:
            middle = (low + high) // 2
            view = self.graph.view(self._names(removed[middle]))
            if self.cost_model.fits(view, self._levels[self._rows, levels[middle]], within):
                high = middle
            else:
                low = middle + 1
        return low

    def _spend(
        self, reference: Reference, gone: frozenset[str], widths: np.ndarray, target: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Widths nearer to the larger ones of `target`, those first that save most loss for their cost, as far as the limits allow."""
        view = self.graph.view(gone)
        rows = np.flatnonzero(view.alive & self.problem.shrinkable & (target > widths))
        if not len(rows):
            return widths
        saved = weights[rows] * (self._curves[rows, widths[rows]] - self._curves[rows, target[rows]])
        cost = np.array([np.interp((widths[i], target[i]), self._levels[i], reference.cost[i]) for i in rows]) @ (-1, 1)
        rows = rows[np.argsort(-saved / np.maximum(cost, 1e-12), kind="stable")]
        columns = np.repeat(widths[:, None], len(rows) + 1, 1)
        for j, i in enumerate(rows, 1):
            columns[i, j:] = target[i]
        last = max(0, self.cost_model.last_fitting(view, columns, reference.limits))
        widths = columns[:, last].copy()
        if last < len(rows):  # the next one as far as it goes
            i = rows[last]
            between = np.arange(widths[i], target[i], self._steps[i])
            columns = np.repeat(widths[:, None], len(between), 1)
            columns[i] = between
            widths[i] = between[max(0, self.cost_model.last_fitting(view, columns, reference.limits))]
        return widths

    def _fallback(self, reference: Reference) -> Allocation:
        """The reference's plan if it fits, else the smallest one, where no price makes a plan fit."""
        plan = reference.allocation
        if self.cost_model.fits(self.graph.view(plan.removed), plan.widths, reference.limits):
            return plan
        completion = self.problem.feasible_completion(reference.limits)
        return Allocation(completion.removed, completion.widths)


def _levels(group: Group) -> np.ndarray:
    """Widths that a group may have, the fewest channels first; at most LEVELS, closer to each other where there are few."""
    allowed = sorted({group.allowed(n) for n in range(group.floor, group.size + 1)})
    if len(allowed) > LEVELS:
        wanted = np.exp(np.linspace(np.log(allowed[0]), np.log(group.size), LEVELS))
        allowed = sorted({group.allowed(round(x)) for x in wanted} | {allowed[0]})
    return np.array(allowed, int)
