"""A surrogate model: the reward of a plan as a Gaussian process, fitted to the students that were evaluated so far."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from compress_env.surgery.graph import LayerGraph

GROWTH = 1.15
"""Length scales are fitted again when there are this many times the observations; in between only the observations change."""
LENGTHS = (0.1, 3.0)
"""Over which a decision changes the reward. Longer ones would say, after a few students, that a decision does not matter at all."""


def features(graph: LayerGraph, removed: frozenset[str], widths: np.ndarray) -> np.ndarray:
    """A plan as a point `(blocks + groups,)` in [0, 1]: which blocks are kept, and the share of its channels that each group keeps.

    Shares, not actions: the same plan is the same point whatever the budget and the way to it, so that everything evaluated helps.

    Args:
        graph: The teacher's.
        removed: Blocks that go. The share of a group that goes with one is 0.
        widths: Channels that the groups keep, `(groups,)`.
    """
    network = graph.view(removed)
    kept = [float(network.has(block.node)) for block in graph.blocks.values()]
    return np.concatenate([kept, np.where(network.alive, widths / graph.full, 0.0)])


class RewardModel(Protocol):
    """Predicts rewards of plans; `Surrogate` does."""

    rewards: list[float]

    def observe(self, features: np.ndarray, reward: float) -> None:
        """Take in one evaluation of a plan with these `features` `(d,)`."""

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the rewards `(n,)` of plans with `features` `(n, d)`."""


class Surrogate:
    """A Gaussian process over `features` of plans.

    Attributes:
        inputs: Features of the plans that were observed.
        rewards: Their rewards.
    """

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.rewards: list[float] = []
        self._fitted = 0
        self._process: GaussianProcessRegressor | None = None
        self._kernel: Any = None

    def observe(self, features: np.ndarray, reward: float) -> None:
        """Take in one evaluation of a plan with these `features` `(d,)`; the next prediction knows of it."""
        self.inputs.append(features)
        self.rewards.append(reward)
        self._process = None

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the rewards `(n,)` of plans with `features` `(n, d)`."""
        process = self._process or self._fit()
        mean, deviation = process.predict(features, return_std=True)
        return mean * self._scale + self._shift, deviation * self._scale

    def _fit(self) -> GaussianProcessRegressor:
        x, y = np.array(self.inputs), np.array(self.rewards)
        self._shift, self._scale = float(y.mean()), float(y.std()) or 1.0
        again = len(y) >= GROWTH * self._fitted
        if again:
            self._fitted = len(y)
            shape = Matern(np.ones(x.shape[1]), LENGTHS, nu=2.5)
            self._kernel = ConstantKernel(1.0, (0.1, 100.0)) * shape + WhiteKernel(1e-2, (1e-5, 0.5))
        self._process = GaussianProcessRegressor(self._kernel, optimizer="fmin_l_bfgs_b" if again else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound
            self._process.fit(x, (y - self._shift) / self._scale)
        self._kernel = self._process.kernel_
        return self._process


def lower_bound(model: RewardModel, plans: np.ndarray) -> np.ndarray:
    """The reward `(n,)` that plans with features `(n, d)` are likely to reach: the prediction less one standard deviation."""
    mean, deviation = model(plans)
    return mean - deviation
