"""`Solver`: the plans that lose least within limits, for many weights of the losses at once.

What a plan uses is no sum: a convolution costs inputs times outputs. So costs are tabulated beside a reference plan, one decision
changed at a time, and at a price of the budget each decision is taken alone; the lowest price is looked for at which the plan, counted
exactly, fits. Plans without the same blocks are counted together, which is what takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        self._block_index = {name: i for i, name in enumerate(self.blocks)}
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
        for at in (first, first - 1):
            for gone, plans in self._alike(removed, (at >= 0) & (at < PRICES), at):
                known = tried.setdefault(gone, [])
                known += sorted(set(plans) - set(known))
        found: list[list[tuple[float, bool, Allocation]]] = [[] for _ in weights]
        for gone, plans in tried.items():
            fit, widths = self._widths(reference, within, gone, loss[plans], levels[plans], prices, of_groups[plans])
            which = np.array(plans)[fit]
            lost = self._lost(reference, gone, widths, of_groups[which], block_loss[which])
            for i, own, less in zip(which.tolist(), widths, lost.tolist()):
                # Of equals, that with the blocks of the first price that fits.
                later = first[i] == PRICES or self._names(removed[i, first[i]]) != gone
                found[i].append((less, later, Allocation(gone, own)))
        best = [min(each, key=lambda x: x[:2])[2] if each else self._fallback(reference) for each in found]
        return best, prices[np.minimum(first, PRICES - 1)]

    def _at_prices(
        self, reference: Reference, loss: np.ndarray, block_loss: np.ndarray, prices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """At each price, which blocks go `(n, prices, blocks)` and the levels of the groups `(n, prices, groups)`."""
        total = loss[:, None] + prices[:, None, None] * reference.cost
        levels = total.argmin(3)
        least = np.take_along_axis(total, levels[..., None], 3)[..., 0]
        kept = prices[:, None] * reference.block_cost - reference.capacity * reference.block_params + least @ self._inner.T
        return kept > block_loss[:, None], levels

    def _names(self, mask: np.ndarray) -> frozenset[str]:
        return frozenset(name for name, gone in zip(self.blocks, mask.tolist()) if gone)

    def _alike(self, removed: np.ndarray, which: np.ndarray, at: np.ndarray) -> list[tuple[frozenset[str], list[int]]]:
        """Plans of the mask `which` by the blocks that go at a price of each, `removed[plan, at[plan]]`."""
        found: dict[bytes, list[int]] = {}
        for i in which.nonzero()[0].tolist():
            found.setdefault(removed[i, at[i]].tobytes(), []).append(i)
        return [(self._names(removed[own[0], at[own[0]]]), own) for own in found.values()]

    def _first_fitting(self, limits: Mapping[str, float], removed: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """The first price with which each plan fits, `(n,)`, PRICES if none does; at each less is used than at the one before."""
        low, high, fits = np.zeros(len(levels), int), np.full(len(levels), PRICES), np.zeros(len(levels), bool)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            for gone, plans in self._alike(removed, open_, middle):
                widths = self.levels[self._rows, levels[plans, middle[plans]]].T
                fits[plans] = self.cost_model.fits_each(self.graph.view(gone), widths, limits)
            high = np.where(open_ & fits, middle, high)
            low = np.where(open_ & ~fits, middle + 1, low)
        return low

    def _widths(
        self, reference: Reference, within: Mapping[str, float], gone: frozenset[str], loss: np.ndarray, levels: np.ndarray,
        prices: np.ndarray, weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Which plans fit without these blocks at some price `(n,)`, and of these the widths `(n, groups)` that lose least."""
        view = self.graph.view(gone)

        def fitting(levels: np.ndarray) -> np.ndarray:
            """The first price with which each plan fits."""
            growing = self.levels[self._rows, levels].transpose(2, 0, 1)[:, :, ::-1]
            return levels.shape[1] - 1 - self.cost_model.last_fitting_each(view, growing, within)

        first = fitting(levels)
        fit = first < len(prices)
        level, larger = (levels[np.arange(len(levels)), np.minimum(at, len(prices) - 1)] for at in (first, np.maximum(first - 1, 0)))
        if len(which := (fit & (first > 0)).nonzero()[0]):
            low, high = np.log(prices[first[which] - 1])[:, None], np.log(prices[first[which]])[:, None]
            between = np.exp(low + (high - low) / NARROWED * np.arange(NARROWED + 1))
            narrowed = (loss[which][:, None] + between[:, :, None, None] * reference.cost).argmin(3)
            at = fitting(narrowed)
            fit[which] = at <= NARROWED
            for target, own in ((level, np.minimum(at, NARROWED)), (larger, np.minimum(np.maximum(at - 1, 0), NARROWED))):
                target[which] = narrowed[np.arange(len(which)), own]
        level, larger, weights = level[fit], larger[fit], weights[fit]
        widths = self.levels[self._rows, level]
        for target in (larger, np.minimum(level + 1, self.levels.shape[1] - 1)):
            widths = self._spend(reference, gone, widths, self.levels[self._rows, target], weights)
        return fit, widths

    def _spend(
        self, reference: Reference, gone: frozenset[str], widths: np.ndarray, target: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Widths nearer to the larger ones of `target`, those first that save most loss for their cost, as far as the limits allow."""
        view, each = self.graph.view(gone), np.arange(len(widths))
        grow = view.alive & self.problem.shrinkable & (target > widths)
        count = grow.sum(1)
        if not count.any():
            return widths
        rows, steps = self._rows, np.arange(count.max() + 1)
        saved = weights * (self._curves[rows, widths] - self._curves[rows, target])
        cost = reference.cost_between[rows, target] - reference.cost_between[rows, widths]
        order = np.argsort(np.where(grow, -saved / np.maximum(cost, 1e-12), np.inf), axis=1, kind="stable")
        rank = np.argsort(order, axis=1)  # of each group, how many grow before it
        grown = (grow.T & (rank.T < count))[:, :, None] & (rank.T[:, :, None] < steps)
        columns = np.where(grown, target.T[:, :, None], widths.T[:, :, None])
        last = np.minimum(np.maximum(self.cost_model.last_fitting_each(view, columns, reference.limits), 0), count)
        widths = columns[:, each, last].T
        if len(which := (last < count).nonzero()[0]):  # the next one as far as it goes
            group = order[which, last[which]]
            begin, end, step = widths[which, group], target[which, group], self._steps[group]
            more = (end - begin - 1) // step
            between = begin[:, None] + step[:, None] * np.minimum(np.arange(more.max() + 1), more[:, None])
            columns = np.repeat(widths[which].T[:, :, None], between.shape[1], 2)
            columns[group, np.arange(len(which))] = between
            last = np.maximum(self.cost_model.last_fitting_each(view, columns, reference.limits), 0)
            widths[which, group] = between[np.arange(len(which)), last]
        return widths

    def _lost(
        self, reference: Reference, gone: frozenset[str], widths: np.ndarray, of_groups: np.ndarray, block_loss: np.ndarray
    ) -> np.ndarray:
        """The weighted sums of what the parts of plans lose, less what their parameters are worth, `(n,)`."""
        blocks, alive = self._parts_of(gone)
        groups = of_groups * self._curves[self._rows, widths]
        size = self.cost_model.predict_many("params", self.graph.view(gone), widths.T) / self.cost_model.teacher["params"]
        return block_loss.take(blocks, axis=1).sum(1) + groups.compress(alive, axis=1).sum(1) - reference.capacity * size

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
