"""A model of the reward of a plan, fitted to the students that were evaluated so far."""

from __future__ import annotations

import warnings

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
    """Which blocks are kept, and the share of its channels that each group keeps, 0 if it has gone: `(blocks + groups,)`.

    Shares, not actions: the same plan is the same point whatever the budget and the way to it, so that everything evaluated helps.
    """
    network = graph.view(removed)
    kept = [float(network.has(block.node)) for block in graph.blocks.values()]
    return np.concatenate([kept, np.where(network.alive, widths / graph.full, 0.0)])


class Surrogate:
    """A Gaussian process over `features` of plans."""

    def __init__(self):
        self.inputs: list[np.ndarray] = []
        self.rewards: list[float] = []
        self._fitted = 0
        self._process: GaussianProcessRegressor | None = None
        self._kernel = None

    def observe(self, features: np.ndarray, reward: float) -> None:
        """Take in one evaluation of a plan with these `features` `(d,)`; the next prediction knows of it."""
        self.inputs.append(features)
        self.rewards.append(reward)
        self._process = None

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the rewards `(n,)` of plans with `features` `(n, d)`."""
        if self._process is None:
            self._fit()
        mean, deviation = self._process.predict(features, return_std=True)
        return mean * self._scale + self._shift, deviation * self._scale

    def _fit(self) -> None:
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


def sure(model: Surrogate, plans: np.ndarray) -> np.ndarray:
    """The reward `(n,)` that plans with features `(n, d)` are likely to reach: the prediction less one standard deviation."""
    mean, deviation = model(plans)
    return mean - deviation
