"""`Bisection`: where along a budget something that holds at the large end stops to hold. Which budget is next, and nothing else."""

from __future__ import annotations

import math

BUDGET = {"macs": "10%..100%"}
"""The budgets that are looked through if none are given."""
PRECISION = 0.02
"""Share of the teacher's usage: the bisection ends when what holds and what does not are so close together."""


class Bisection:
    """The smallest budget that holds, between a budget that is taken not to hold and one that does.

    It halves the interval until that is no wider than `precision`. It assumes that what holds at a budget holds at larger ones; where
    that is not so, `best` still was seen to hold, but a smaller one may do so, too.

    Args:
        low: The smallest budget, which is not tried itself.
        high: The largest one.
        precision: Width of the interval at which it ends.
        certain: Whether the largest budget holds without being tried; else it is tried if no smaller one holds.

    Attributes:
        low: The largest budget that does not hold, of those below every one that does.
        high: The smallest that holds.
        best: What was used by the one that was seen to hold with the least; None if there is none.
    """

    def __init__(self, low: float, high: float, precision: float, certain: bool = True):
        self.low, self.high, self.precision = low, high, precision
        self._last = None if certain else high
        self.best: float | None = None

    @property
    def next(self) -> float | None:
        """The budget to try next; None if there is nothing left to try."""
        if self.high - self.low > self.precision:
            return (self.low + self.high) / 2
        return self._last if self.best is None else None

    @property
    def most(self) -> int:
        """How many budgets are left to try at most."""
        halvings = math.ceil(math.log2((self.high - self.low) / self.precision)) if self.high - self.low > self.precision else 0
        return halvings + (self._last is not None and self.best is None)

    def tell(self, budget: float, used: float | None) -> None:
        """Take in how a budget was.

        Args:
            budget: The one that was tried.
            used: What was used of it by what holds, at most the budget; None if nothing holds there.
        """
        if budget == self._last:
            self._last = None
        if used is None:
            self.low = max(self.low, budget)
        else:
            self.high, self.best = max(self.low, used), used
