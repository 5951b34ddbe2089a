"""How much worse a student is than its teacher on the same examples, and how much worse it may be in truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import ndtri
from torch import Tensor

from compress_env.tasks import Task

CONFIDENCE = 0.95
"""Of the one-sided bound."""
RESAMPLES = 1000
"""Draws of the bootstrap."""
ROUNDING = 1e-9
"""Points by which a drop may be larger than the one that is asked for."""


@dataclass(frozen=True)
class Drop:
    """The difference of two networks' main metrics on the same examples, in points: hundredths of the metric, percent of an accuracy.

    Attributes:
        points: Teacher's less student's; below 0 where the student is better.
        bound: With `confidence`, the drop on further examples of the same kind is at most so many points.
        confidence: Of the one-sided bound.
        examples: How many there are.
        teacher: The teacher's metric, 1 being perfect.
        student: The student's.
        method: "score" (Tango's, for metrics that count right answers) or "bootstrap".
        lost: Examples that only the teacher has right; None unless the metric counts right answers.
        gained: Examples that only the student has right; likewise.
    """

    points: float
    bound: float
    confidence: float
    examples: int
    teacher: float
    student: float
    method: str
    lost: int | None = None
    gained: int | None = None

    def within(self, points: float) -> bool:
        """Whether the drop that was measured is at most so many points."""
        return self.points <= points + ROUNDING

    def surely_within(self, points: float) -> bool:
        """Whether the bound is."""
        return self.bound <= points + ROUNDING


def drop(task: Task, teacher: Tensor, student: Tensor, labels: Tensor, seed: int = 0, confidence: float = CONFIDENCE) -> Drop:
    """How much worse a student is than its teacher on the same examples.

    Where a task says which answers are right (`right(outputs, labels)`, `(n,)` of bool), and their share is its main metric, the bound
    is the score interval for paired proportions. For others it is a percentile of the paired bootstrap over examples (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), which tells little with few examples.

    Args:
        task: What outputs mean.
        teacher: The teacher's outputs `(n, ...)`.
        student: The student's.
        labels: Of the same examples `(n, ...)`.
        seed: Of the bootstrap.
        confidence: Of the one-sided bound, in (0.5, 1).
    """
    theirs, own = (task.metrics(outputs, labels)[task.metric] for outputs in (teacher, student))
    points, count = 100 * (theirs - own), len(labels)
    rights = [task.right(outputs, labels) for outputs in (teacher, student)] if hasattr(task, "right") else []
    if rights and np.allclose([right.double().mean().item() for right in rights], (theirs, own)):
        before, after = rights
        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        bound = 100 * upper_bound(lost, gained, count, confidence)
        return Drop(points, bound, confidence, count, theirs, own, "score", lost, gained)

    def difference(rows: np.ndarray) -> float:
        chosen = torch.from_numpy(rows)
        before, after = (task.metrics(outputs[chosen], labels[chosen])[task.metric] for outputs in (teacher, student))
        return 100 * (before - after)

    from scipy.stats import bootstrap  # importing it takes a second

    found = bootstrap(
        (np.arange(count),), difference, n_resamples=RESAMPLES, vectorized=False, confidence_level=confidence, alternative="less",
        method="percentile", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return Drop(points, float(found.confidence_interval.high), confidence, count, theirs, own, "bootstrap")


def upper_bound(lost: int, gained: int, examples: int, confidence: float = CONFIDENCE) -> float:
    """The largest difference of two paired proportions that the counts do not rule out: Tango's score interval, its upper end.

    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design, Statistics in
    Medicine 17, 1998, equations 11 to 15. Where no example is answered differently, it is z^2 / (n + z^2).

    Args:
        lost: Examples that only the first has right.
        gained: Examples that only the second has right.
        examples: All, at least 1.
        confidence: That the first's proportion less the second's is at most the bound, in (0.5, 1).

    Returns:
        The bound, in (-1, 1].
    """
    z, n = float(ndtri(confidence)), examples
    if lost == n:
        return 1.0

    def excess(difference: float) -> float:
        """Above 0 as long as the score statistic is within z."""
        b = (2 * n - lost + gained) * difference - lost - gained
        rare = (math.sqrt(max(0.0, b * b + 8 * n * gained * difference * (1 - difference))) - b) / (4 * n)
        variance = n * (2 * rare + difference * (1 - difference))
        return lost - gained - n * difference + z * math.sqrt(max(0.0, variance))

    least = (lost - gained) / n
    return float(brentq(excess, least + 1e-12, 1.0))
