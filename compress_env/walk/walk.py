"""One walk over the layers: the state of the choices, and the clamp that keeps every limit reachable. No Gymnasium here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compress_env.allocation.solver import ROUNDING, Allocation
from compress_env.problem import Problem
from compress_env.surgery.graph import PrunedView
from compress_env.surgery.ir import Group
from compress_env.walk.base import AnyWalk


class Walk(AnyWalk):
    """The state of one walk.

    The clamp is AMC's algorithm 1 (He et al., ECCV 2018), generalised: for all that is still undecided the choices of a completion
    that is known to fit are assumed, and an action stands only if the whole then fits, whatever the resource. So at each step at least
    one choice fits.

    Args:
        problem: The problem.
        limits: By resource, in its unit.
        hard: Whether actions are clamped so that the completion stays possible.

    Attributes:
        previous: The last decision as executed: -1 removed, 1 kept, 0 if it was none; and the last sparsity.
        completion: Choices for everything that are within the limits.

    Raises:
        InfeasibleBudget: If the limits are hard and cannot be met.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, float], hard: bool = True):
        super().__init__(problem, limits)
        self.hard = hard
        self.completion = problem.feasible_completion(limits) if hard else problem.completions[0]
        self._removed: frozenset[str] = frozenset()
        self._widths = self.graph.full.copy()
        # What a check needs, kept up to date: limits with room for rounding; the view if undecided blocks go as in the completion; the
        # widths decided so far, with those of the completion for the rest; and with all uniform keep ratios for the rest.
        self._within = {name: limit * (1 + ROUNDING) for name, limit in limits.items()}
        self._undecided = problem.removable
        self._complete = self._completed(self.removed)
        self._smallest = np.where(problem.shrinkable, self.completion.widths, self.graph.full)
        self._decided = np.zeros(len(self.widths), bool)
        self._uniform = problem.uniform_columns.copy()
        self._ratio: float | None = None

    @property
    def removed(self) -> frozenset[str]:
        """Blocks that are not as they came: removed so far, or inserted."""
        return self._removed

    @property
    def widths(self) -> np.ndarray:
        """Channels that each group keeps, `(groups,)`; those of the teacher where nothing was decided."""
        return self._widths

    def _completed(self, removed: frozenset[str]) -> PrunedView:
        """The view if everything undecided is as in the completion."""
        return self.graph.view(removed | (self.completion.removed & self._undecided))

    def step(self, keep: float, sparsity: float) -> None:
        """Take the current decision; both actions lie in [-1, 1], and the one that is not asked for is ignored."""
        self.current.apply(self, keep, sparsity)
        self.step_index += 1
        self._ratio = None

    def remove(self, block: str, keep: bool) -> None:
        """Keep or insert a block, or do without it; the other way round where the limits ask for it."""
        inactive, optional = not self.has_block(block), block in self.graph.optional
        switch = keep == optional and not inactive
        self._undecided = self._undecided - {block}
        removed = self.removed | {block} if switch else self.removed
        complete = self._completed(removed)
        departs = not inactive and switch != (block in self.completion.removed)
        if self.hard and departs and not self.problem.cost_model.fits(complete, self._smallest, self._within):
            switch = not switch
            removed = self.removed | {block} if switch else self.removed
            complete = self._completed(removed)
        self._removed, self._complete = removed, complete
        self.previous = (1.0 if switch == optional else -1.0, 0.0)

    def shrink(self, group: str, sparsity: float) -> None:
        """Give a group the width that an action in [-1, 1] asks for, or the largest one below it that the limits allow."""
        i, own = self.graph.group_index[group], self.graph.groups[group]
        if not self.has_group(group):
            width, self.previous = int(self.widths[i]), (0.0, 0.0)
        else:
            floor, most = own.floor / own.size, own.most / own.size
            ratio = self._middle(own)
            share = ratio + (most - ratio) * -sparsity if sparsity < 0 else ratio + (floor - ratio) * sparsity
            width = own.allowed(int(share * own.size + 1e-6))
            if self.hard:
                width = self._largest(i, own.step, width)
            done = self.sparsity(width / own.size, ratio, floor, most)
            self.previous = (0.0, min(max(done, -1.0), 1.0))
        self._decided[i] = True
        self._widths[i] = self._smallest[i] = self._uniform[i] = width

    def _middle(self, group: Group) -> float:
        """The share of its channels that the action 0 asks for."""
        return min(self.uniform_keep_ratio(), group.most / group.size)

    @staticmethod
    def sparsity(share: float, ratio: float, floor: float, most: float = 1.0) -> float:
        """The action that gives this share of channels."""
        if share >= ratio:
            return -(share - ratio) / (most - ratio) if ratio < most else 0.0
        return (ratio - share) / (ratio - floor)

    def _largest(self, i: int, step: int, width: int) -> int:
        """The largest width of group i up to `width` with which the rest can still fit; at least that of the completion."""
        cost_model, low = self.problem.cost_model, int(self.completion.widths[i])
        if width <= low:
            return width
        widths = self._smallest.copy()
        widths[i] = width
        if cost_model.fits(self._complete, widths, self._within):
            return width
        smaller = np.arange(low, width, step)  # the first is possible, since the completion is
        columns = np.repeat(widths[:, None], len(smaller), 1)
        columns[i] = smaller
        return int(smaller[max(0, cost_model.last_fitting(self._complete, columns, self._within))])

    def completed(self, allocation: Allocation) -> Allocation:
        """What is decided so far, with an allocation for the rest; open groups are narrower where the limits ask for it."""
        removed = self.removed | (allocation.removed & self._undecided)
        opened = self.problem.shrinkable & ~self._decided
        widths = np.where(opened, allocation.widths, self.widths)
        view, cost_model = self.graph.view(removed), self.problem.cost_model
        if self.done or cost_model.fits(view, widths, self._within):
            return Allocation(removed, widths)
        columns = np.where(opened[:, None], np.minimum(self.graph.levels[0], widths[:, None]), widths[:, None])
        last = cost_model.last_fitting(view, columns, self._within)
        if last < 0 and self.hard:  # only what the clamp assumes still fits
            return Allocation(self.removed | (self.completion.removed & self._undecided), self._smallest.copy())
        return Allocation(removed, columns[:, max(0, last)])

    def kept_by_zero(self) -> float:
        """What the action 0 keeps of the current target: a block, and of a group the uniform keep ratio."""
        if self.done or self.current.inactive(self):
            return 0.0
        if self.current.shrinks:
            return min(self._middle(self.graph.groups[self.current.target]), 1.0)
        return float(self.current.target not in self.graph.optional)

    def uniform_keep_ratio(self) -> float:
        """The largest share of channels, the same for all groups still undecided, that meets the limits.

        It is the centre of the action: 0 means this share, so that the untrained policy gives the uniform student at the budget. It is
        more than 1 where the network may grow and the limits leave room.
        """
        if self._ratio is None:
            last = self.problem.cost_model.last_fitting(self._complete, self._uniform, self._within)
            share = float(self.graph.levels[1][last]) if last >= 0 else 0.0
            self._ratio = max(share, self.problem.floors[self.step_index])
        return self._ratio


class ShareWalk(Walk):
    """A walk whose actions are shares of channels as they are, as in AMC: all for -1, the fewest for 1, and linear between.

    Arguments and errors are those of `Walk`.
    """

    def _middle(self, group: Group) -> float:
        """Half way between the fewest channels and the most."""
        return (group.floor + group.most) / (2 * group.size)
