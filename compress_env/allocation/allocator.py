"""`Allocator`: the plan that loses least within limits, by what each of its decisions costs alone.

The loss of a plan is predicted as the sum of its parts' (as in SPDY, Frantar & Alistarh, ICML 2022). Each `Reference` is made of the
one before: costs beside a plan are tabulated, and `Solver` finds the plan that loses least by them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.allocation.solver import REMEMBERED, Allocation, Reference, Solver
from compress_env.evaluation import CAPACITY, proxy_score
from compress_env.problem import Problem
from compress_env.surgery.graph import PrunedView

ROUNDS = 6
"""References that are made of the one before, until nothing changes."""
RELUCTANCE = (1.0, 0.3, 3.0, 1e9)
"""Factors on what removing blocks loses, in looking for a reference: it may be worth it only together with narrower groups."""
FACTORS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
GROWTH, CORNERS = 1.1, 16
"""How far apart weights may be, for the predicted KL to grow on average by at most this factor where each is the largest or the
smallest: the sum of losses knows little of what lies farther from the plan that it is lowest for."""
Usage = Callable[[PrunedView, np.ndarray], np.ndarray]


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
        self._solver = Solver(problem, sensitivities)
        self.shrinks, self._blocks, self._levels = self._solver.shrinks, self._solver.blocks, self._solver.levels
        self._references: dict[tuple, Reference] = {}
        self._factors: dict[tuple, float] = {}

    def kl(self, plan: Allocation) -> float:
        """The predicted KL of a plan in nats: the sum of what its parts cost alone. A part that went with a block counts once."""
        return self._solver.kl(plan)

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
                (plan,), (price,) = self._solver.solve(tables, weights[None])
                # With the very tables that the plan was found by, so that weights of 1 lead to it again.
                found.append(replace(tables, allocation=plan, reluctance=weights))
                if plan.removed == before.removed and np.array_equal(plan.widths, before.widths):
                    break
                tables = self._tables(plan, limits, float(price))
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
                plans = self.solve(reference, np.array([self.weights(corner, factor) for corner in corners]))
                return bool(np.mean([self.kl(plan) for plan in plans]) > most)

            self._factors[key] = FACTORS[max(bisect_left(FACTORS, True, key=grows) - 1, 0)]
        return self._factors[key]

    def more(self, actions: np.ndarray) -> np.ndarray:
        """By how much each target is to be kept, of actions `(..., steps)`: those of blocks keep, those of groups shrink."""
        return np.where(self.shrinks, -actions, actions)

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

    def solve(self, reference: Reference, weights: np.ndarray) -> list[Allocation]:
        """The plans within the reference's limits that lose least where each decision's loss is multiplied by a weight.

        Args:
            reference: Of the limits.
            weights: Of each plan one for each decision of the problem, `(n, steps)`; 1 everywhere gives the reference's own plan.

        Returns:
            The plans; all limits that can be predicted are met.
        """
        return self._solver.solve(reference, reference.reluctance * weights)[0]

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
        return Reference(plan, dict(limits), price, capacity, tables[0], self._solver.between_levels(tables[0]), tables[1], *blocks)

    def _fill(self, tables: np.ndarray, plan: Allocation, view: PrunedView, usage: Usage, own: np.ndarray, which: np.ndarray) -> None:
        """What some groups cost at each level, all else as in the plan, less what the plan costs."""
        groups, levels = np.flatnonzero(which & self.problem.shrinkable), self._levels.shape[1]
        if not len(groups):
            return
        columns = np.repeat(plan.widths[:, None], len(groups) * levels, 1)
        columns[np.repeat(groups, levels), np.arange(len(groups) * levels)] = self._levels[groups].ravel()
        tables[:, groups] = (usage(view, columns) - own).reshape(2, len(groups), levels)
