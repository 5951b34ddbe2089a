"""How agents are compared over seeds and scenarios, after Agarwal et al. (NeurIPS 2021): interquartile means, bootstrap intervals.

Scores are arrays `(scenarios, seeds)`. The library of that paper, rliable, does not import with current pandas; the formulas here
are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t, trim_mean

REPETITIONS = 2000


def iqm(scores: np.ndarray) -> float:
    """Mean of the middle half of all runs: as robust as the median, with less noise."""
    return float(trim_mean(np.ravel(scores), 0.25))


def interval(
    statistic: Callable[..., float], *scores: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a statistic by stratified bootstrap: seeds are redrawn within each scenario, for each agent alone."""
    rng = np.random.default_rng(seed)

    def redrawn(table: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, rng.integers(table.shape[1], size=table.shape), axis=1)

    values = [statistic(*map(redrawn, scores)) for _ in range(REPETITIONS)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Probability that a run of `x` is better than one of `y`, averaged over scenarios; ties count half (Mann-Whitney's U)."""
    above = [(np.sign(a[:, None] - b[None, :]).mean() + 1) / 2 for a, b in zip(x, y)]
    return float(np.mean(above))


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs with a score above each threshold (performance profile)."""
    return (np.ravel(scores)[:, None] > thresholds).mean(0)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area, in the unit square of (cost share, metric), that some point dominates: no dearer than it, and no worse."""
    area, best = 0.0, 0.0
    points = sorted((min(cost, 1.0), metric) for cost, metric in points)
    for i, (cost, metric) in enumerate(points):
        best = max(best, metric)
        until = points[i + 1][0] if i + 1 < len(points) else 1.0
        area += best * (until - cost)
    return area


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its confidence interval by Student's t, which few seeds need; NaN for a single one."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(t.ppf((1 + level) / 2, len(values) - 1) * error)


def percent(values: Sequence[float]) -> str:
    """Mean and 95 % interval of shares, in percent, for tables."""
    middle, half = mean_interval(values)
    return f"{middle:.2%}" if np.isnan(half) else f"{middle:.2%} ± {100 * half:.2f}"
