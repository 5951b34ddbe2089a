"""`Solver`: the plans that lose least within limits, for many weights of the losses at once.

What a plan uses is no sum: a convolution costs inputs times outputs. So costs are tabulated beside a reference plan, one decision
changed at a time, and at a price of the budget each decision is taken alone; the lowest price is looked for at which the plan, counted
exactly, fits. Plans without the same blocks are counted together, which is what takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.decisions import Decision
from compress_env.problem import Problem
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Group

LEVELS = 40
"""Widths of a group that are weighed against each other, at most; what is left of the budget then goes to those between."""
PRICES, NARROWED = 32, 8
"""Prices that are tried over five orders of magnitude, and then between the two that the right one lies between."""
SPAN = 5.0
"""Logarithm of how far the first prices reach to either side of the reference's."""
SPREAD = np.exp(np.linspace(-SPAN, SPAN, PRICES))
AT_ONCE = 2_000_000
"""Prices times widths that are weighed at once, for all weights together: 16 MB of numbers."""
REMEMBERED = 1000
ROUNDING = 1e-13
"""Relative error of what is predicted; less than 1 for all that is counted in whole numbers, up to 1e13."""


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
        allocation: The plan, to which weights of 1 lead.
        limits: By resource, in its unit.
        price: Loss that a unit of cost is worth, about which others are tried.
        capacity: Loss that a share of the parameters is worth.
        cost: Of each group at each of its levels, less that at the plan before, `(groups, levels)`: usage as a share of the limits.
        cost_between: The same at each number of channels from 0 on, between levels in a straight line, `(groups, channels)`.
        params: Likewise at levels, as a share of the teacher's parameters.
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
    cost_between: np.ndarray
    params: np.ndarray
    block_cost: np.ndarray
    block_params: np.ndarray
    alternatives: tuple[Allocation, ...] = ()
    reluctance: np.ndarray | float = 1.0


class Solver:
    """Finds plans of one problem.

    Args:
        problem: The problem.
        sensitivities: What each decision costs alone.

    Attributes:
        blocks: Names of the blocks that are decided about.
        levels: Widths of each group that are weighed against each other, the fewest channels first, `(groups, levels)`.
        shrinks: Which of the problem's decisions are about groups, `(steps,)`.
    """

    def __init__(self, problem: Problem, sensitivities: Sensitivities):
        self.problem, self.graph, self.cost_model = problem, problem.graph, problem.cost_model
        groups = self.graph.groups.values()
        self.blocks = [d.target for d in problem.decisions if not d.shrinks]
        self._rows = np.arange(len(groups))
        self._steps = np.array([g.step for g in groups], int)
        every = [_levels(g) if may else np.array([g.size]) for g, may in zip(groups, problem.shrinkable)]
        most = max(map(len, every), default=1)
        self.levels = np.array([np.append(x, np.full(most - len(x), x[-1])) for x in every], int).reshape(len(groups), most)
        self._curves = np.zeros((len(groups), max((g.size for g in groups), default=0) + 1))
        for i, (name, g) in enumerate(self.graph.groups.items()):
            self._curves[i, : g.size + 1] = sensitivities.curve(name, g.size)
        self._loss = self._curves[self._rows[:, None], self.levels]
        self._block_loss = np.array([sensitivities.blocks[name] for name in self.blocks])
        whole = self.graph.view(frozenset()).alive
        inner = [whole & ~self.graph.view(frozenset([name])).alive for name in self.blocks]
        self._inner = np.array(inner, float).reshape(len(self.blocks), len(groups))
        self.shrinks = np.array([d.shrinks for d in problem.decisions], bool)
        self._group_place = np.array([self.graph.group_index[d.target] for d in problem.decisions if d.shrinks], int)
        self._sets: dict[bytes, frozenset[str]] = {}
        self._parts: dict[frozenset[str], tuple[np.ndarray, np.ndarray]] = {}

    def kl(self, plan: Allocation) -> float:
        """The predicted KL of a plan in nats: the sum of what its parts cost alone. A part that went with a block counts once."""
        outermost, alive = self.parts_of(plan.removed)
        return float(self._block_loss[outermost].sum() + self._curves[self._rows, plan.widths][alive].sum())

    def parts_of(self, removed: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
        """Masks of those removed blocks that lie in no other one `(blocks,)`, and of the groups left `(groups,)`; remembered."""
        if (known := self._parts.get(removed)) is None:
            if len(self._parts) > REMEMBERED:
                self._parts.clear()
            outermost = self.graph.canonical(removed, self.graph.full).removed
            mask = np.array([name in outermost for name in self.blocks], bool)
            known = self._parts[removed] = (mask, self.graph.view(removed).alive)
        return known

    def between_levels(self, values: np.ndarray) -> np.ndarray:
        """Values of groups at their levels `(groups, levels)` at each number of channels, in straight lines, `(groups, channels)`."""
        channels = np.arange(self._curves.shape[1])
        return np.array([np.interp(channels, *each) for each in zip(self.levels, values)]).reshape(len(values), len(channels))

    def solve(self, reference: Reference, weights: np.ndarray) -> tuple[list[Allocation], np.ndarray]:
        """The plans within the reference's limits that lose least where each decision's loss is multiplied by a weight.

        Args:
            reference: Of the limits.
            weights: Of each plan one for each decision of the problem, `(n, steps)`.

        Returns:
            The plans, of which all meet the limits that can be predicted, and the prices `(n,)` at which they were found.
        """
        size = max(1, AT_ONCE // (PRICES * max(1, self.levels.size)))
        parts = [self._solved(reference, weights[i : i + size]) for i in range(0, len(weights), size)]
        return [plan for plans, _ in parts for plan in plans], np.concatenate([prices for _, prices in parts])

    def _solved(self, reference: Reference, weights: np.ndarray) -> tuple[list[Allocation], np.ndarray]:
        of_groups, of_blocks = np.ones((len(weights), len(self._rows))), weights[:, ~self.shrinks]
        of_groups[:, self._group_place] = weights[:, self.shrinks]
        loss = of_groups[:, :, None] * self._loss - reference.capacity * reference.params
        block_loss = of_blocks * self._block_loss
        prices = reference.price * SPREAD
        removed, levels = self._at_prices(reference, loss, block_loss, prices)
        within = {name: limit * (1 + ROUNDING) for name, limit in reference.limits.items()}
        first = self._first_fitting(within, removed, levels)
        # The blocks that go may change at that price, and much cost with them: those on both sides of it are tried.
        tried: dict[frozenset[str], list[int]] = {}
        for i, at in enumerate(first):
            for gone in {self._names(removed[i, j]): None for j in (at, at - 1) if 0 <= j < PRICES}:
                tried.setdefault(gone, []).append(i)
        those = _Tried(self, tried)
        fit, widths = self._widths(reference, within, those, loss[those.plans], levels[those.plans], prices, of_groups[those.plans])
        lost = self._lost(reference, those, widths, of_groups[those.plans], block_loss[those.plans])
        best: list[tuple[float, bool, Allocation] | None] = [None] * len(weights)
        for i, gone, fits, own, less in zip(those.plans.tolist(), those.gone, fit.tolist(), widths, lost.tolist()):
            later = first[i] == PRICES or self._names(removed[i, first[i]]) != gone  # of equals, that of the first price that fits
            known = best[i]
            if fits and (known is None or (less, later) < known[:2]):
                best[i] = (less, later, Allocation(gone, own))
        return [each[2] if each else self._fallback(reference) for each in best], prices[np.minimum(first, PRICES - 1)]

    def _at_prices(
        self, reference: Reference, loss: np.ndarray, block_loss: np.ndarray, prices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """At each price, which blocks go `(n, prices, blocks)` and the levels of the groups `(n, prices, groups)`."""
        total = loss[:, None] + prices[:, None, None] * reference.cost
        kept = prices[:, None] * reference.block_cost - reference.capacity * reference.block_params + total.min(3) @ self._inner.T
        return kept > block_loss[:, None], total.argmin(3)

    def _names(self, mask: np.ndarray) -> frozenset[str]:
        """The blocks of a mask `(blocks,)`; remembered."""
        key = mask.tobytes()
        if (known := self._sets.get(key)) is None:
            if len(self._sets) > REMEMBERED:
                self._sets.clear()
            known = self._sets[key] = frozenset(name for name, gone in zip(self.blocks, mask.tolist()) if gone)
        return known

    def _first_fitting(self, limits: Mapping[str, float], removed: np.ndarray, levels: np.ndarray) -> list[int]:
        """The first price with which each plan fits, PRICES if none does; at each less is used than at the one before."""
        low, high = [0] * len(levels), [PRICES] * len(levels)
        while plans := [i for i in range(len(levels)) if low[i] < high[i]]:
            alike: dict[frozenset[str], list[int]] = {}
            for i in plans:
                alike.setdefault(self._names(removed[i, (low[i] + high[i]) // 2]), []).append(i)
            for gone, own in alike.items():
                middle = [(low[i] + high[i]) // 2 for i in own]
                fits = self.cost_model.fits_each(self.graph.view(gone), self.levels[self._rows, levels[own, middle]].T, limits)
                for i, at, fit in zip(own, middle, fits.tolist()):
                    low[i], high[i] = (low[i], at) if fit else (at + 1, high[i])
        return low

    def _widths(
        self, reference: Reference, within: Mapping[str, float], those: _Tried, loss: np.ndarray, levels: np.ndarray,
        prices: np.ndarray, weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Which of `those` fit at some price `(n,)`, and the widths `(n, groups)` that lose least, of those that do."""

        def fitting(levels: np.ndarray) -> np.ndarray:
            """The first price with which each fits."""
            growing = self.levels[self._rows, levels].transpose(2, 0, 1)[:, :, ::-1]
            return levels.shape[1] - 1 - those.last_fitting(growing, within)

        first = fitting(levels)
        low, high = prices[np.maximum(first - 1, 0), None], prices[np.minimum(first, PRICES - 1), None]
        between = low * (high / low) ** (np.arange(NARROWED + 1) / NARROWED)
        levels = (loss[:, None] + between[:, :, None, None] * reference.cost).argmin(3)
        at = fitting(levels)
        fit, each = at <= NARROWED, np.arange(len(at))
        level, larger = levels[each, np.minimum(at, NARROWED)], levels[each, np.maximum(np.minimum(at, NARROWED) - 1, 0)]
        widths = self.levels[self._rows, level]
        for target in (larger, np.minimum(level + 1, self.levels.shape[1] - 1)):
            widths = self._spend(reference, those, widths, self.levels[self._rows, target], weights)
        return fit, widths

    def _spend(
        self, reference: Reference, those: _Tried, widths: np.ndarray, target: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Widths nearer to the larger ones of `target`, those first that save most loss for their cost, as far as the limits allow."""
        grow = those.alive & self.problem.shrinkable & (target > widths)
        count = grow.sum(1)
        if not (most := count.max()):
            return widths
        rows, each = self._rows, np.arange(len(widths))
        saved = weights * (self._curves[rows, widths] - self._curves[rows, target])
        cost = reference.cost_between[rows, target] - reference.cost_between[rows, widths]
        order = np.argsort(np.where(grow, -saved / np.maximum(cost, 1e-12), np.inf), axis=1, kind="stable")
        rank = np.argsort(order, axis=1)  # of each group, how many grow before it
        grown = rank.T[:, :, None] < np.minimum(np.arange(most + 1), count[:, None])
        columns = np.where(grown, target.T[:, :, None], widths.T[:, :, None])
        last = np.maximum(those.last_fitting(columns, reference.limits), 0)
        widths = columns[:, each, last].T
        group = order[each, np.minimum(last, len(rows) - 1)]  # the next one as far as it goes
        begin, step = widths[each, group], self._steps[group]
        more = np.maximum(np.where(last < count, target[each, group] - begin - 1, 0), 0) // step
        between = begin[:, None] + step[:, None] * np.minimum(np.arange(more.max() + 1), more[:, None])
        columns = np.repeat(widths.T[:, :, None], between.shape[1], 2)
        columns[group, each] = between
        widths[each, group] = between[each, np.maximum(those.last_fitting(columns, reference.limits), 0)]
        return widths

    def _lost(
        self, reference: Reference, those: _Tried, widths: np.ndarray, of_groups: np.ndarray, block_loss: np.ndarray
    ) -> np.ndarray:
        """The weighted sums of what the parts of plans lose, less what their parameters are worth, `(n,)`."""
        groups = of_groups * self._curves[self._rows, widths]
        size = those.predict("params", widths.T) / self.cost_model.teacher["params"]
        return (block_loss * those.outermost).sum(1) + (groups * those.alive).sum(1) - reference.capacity * size

    def _fallback(self, reference: Reference) -> Allocation:
        """The reference's plan if it fits, else the smallest one, where no price makes a plan fit."""
        plan = reference.allocation
        if self.cost_model.fits(self.graph.view(plan.removed), plan.widths, reference.limits):
            return plan
        completion = self.problem.feasible_completion(reference.limits)
        return Allocation(completion.removed, completion.widths)


class _Tried:
    """Plans that are tried, those without the same blocks beside each other.

    Args:
        solver: Finds them.
        tried: Numbers of plans by the blocks that they are without.

    Attributes:
        plans: The numbers, `(n,)`.
        gone: The blocks that each is without.
        outermost: Which of these lie in no other one, `(n, blocks)`.
        alive: The groups that are left, `(n, groups)`.
    """

    def __init__(self, solver: Solver, tried: Mapping[frozenset[str], list[int]]):
        self._cost_model, self.plans = solver.cost_model, np.array([i for own in tried.values() for i in own], int)
        self.gone = [gone for gone, own in tried.items() for _ in own]
        parts = [solver.parts_of(gone) for gone in self.gone]
        self.outermost, self.alive = np.array([own for own, _ in parts]), np.array([own for _, own in parts])
        ends = [*accumulate(len(own) for own in tried.values())]
        self._alike = [(solver.graph.view(gone), slice(a, b)) for gone, a, b in zip(tried, [0, *ends], ends)]

    def last_fitting(self, widths: np.ndarray, limits: Mapping[str, float]) -> np.ndarray:
        """As `CostModel.last_fitting_each` for columns `(groups, n, k)`."""
        return np.concatenate([self._cost_model.last_fitting_each(view, widths[:, own], limits) for view, own in self._alike])

    def predict(self, name: str, widths: np.ndarray) -> np.ndarray:
        """Usage of a resource by each `(n,)`, whose widths are the columns `(groups, n)`."""
        return np.concatenate([self._cost_model.predict_many(name, view, widths[:, own]) for view, own in self._alike])


def _levels(group: Group) -> np.ndarray:
    """Widths that a group may have, the fewest channels first; at most LEVELS, closer to each other where there are few."""
    allowed = sorted({group.allowed(n) for n in range(group.floor, group.size + 1)})
    if len(allowed) > LEVELS:
        wanted = np.exp(np.linspace(np.log(allowed[0]), np.log(group.size), LEVELS))
        allowed = sorted({group.allowed(round(x)) for x in wanted} | {allowed[0]})
    return np.array(allowed, int)
