"""A surrogate model: the reward of a plan as a Gaussian process about its prediction, fitted to the students judged so far."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from compress_env.allocation.solver import Allocation
from compress_env.objective import Objective
from compress_env.surgery.graph import LayerGraph

GROWTH = 1.15
"""Length scales are fitted again when there are this many times the observations; in between only the observations change."""
LENGTHS = (0.1, 3.0)
"""Over which a decision changes the reward. Longer ones would say, after a few students, that a decision does not matter at all."""

FITTED = ("k1__k1__constant_value", "k1__k2__length_scale", "k2__noise_level")
"""What is fitted of the kernel, by scikit-learn's names."""


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


def point(objective: Objective, plan: Allocation, limits: Mapping[str, float]) -> np.ndarray:
    """A plan as `Surrogate` takes it, `(1 + blocks + groups,)`: the reward that sensitivities predict, then its features."""
    predicted = objective.predicted_of(plan, limits)
    return np.concatenate([[predicted], features(objective.problem.graph, plan.removed, plan.widths)])


class Surrogate:
    """A Gaussian process over plans. Its mean is the reward that sensitivities predict, plus a constant.

    Attributes:
        inputs: Plans that were observed, as by `point`.
        rewards: Their rewards.
    """

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.rewards: list[float] = []
        self._fitted = 0
        self._process: GaussianProcessRegressor | None = None
        self._kernel: Any = None

    def observe(self, point: np.ndarray, reward: float) -> None:
        """Take in one evaluation of a plan, given as by `point`; the next prediction knows of it."""
        self.inputs.append(point)
        self.rewards.append(reward)
        self._process = None

    def state(self) -> dict[str, Any]:
        """What `resume` needs beside the observations, as JSON holds it: the fitted kernel, and when it was fitted."""
        kernel = self._kernel and {
            name: np.asarray(value).tolist() for name, value in self._kernel.get_params().items() if name in FITTED
        }
        return {"fitted": self._fitted, "kernel": kernel}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Predict as the model of this state, which observed the same."""
        self._fitted, self._process, self._kernel = int(state["fitted"]), None, None
        if state["kernel"]:
            self._kernel = _kernel(len(state["kernel"][FITTED[1]])).set_params(**state["kernel"])

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the rewards `(n,)` of plans given as by `point`, `(n, d)`."""
        process = self._process or self._fit()
        mean, deviation = process.predict(points[:, 1:], return_std=True)
        return points[:, 0] + mean * self._scale + self._shift, deviation * self._scale

    @contextmanager
    def believing(self, points: Sequence[np.ndarray]) -> Iterator[None]:
        """Within the block, plans that are being judged are taken to have the rewards that are expected of them.

        So the model does not ask for their like again (the kriging believer of Ginsbourger, Le Riche & Carraro, 2010).

        Args:
            points: As by `point`.
        """
        if not points:
            yield
            return
        mean, _ = self(np.array(points))
        before = dict(vars(self))
        self.inputs, self.rewards = [*self.inputs, *points], [*self.rewards, *mean.tolist()]
        self._process, self._fitted = None, len(self.inputs)
        try:
            yield
        finally:
            vars(self).update(before)

    def _fit(self) -> GaussianProcessRegressor:
        x = np.array(self.inputs)
        y = np.array(self.rewards) - x[:, 0]
        self._shift, self._scale = float(y.mean()), float(y.std()) or 1.0
        again = len(y) >= GROWTH * self._fitted
        if again:
            self._fitted = len(y)
            self._kernel = _kernel(x.shape[1] - 1)
        self._process = GaussianProcessRegressor(self._kernel, optimizer="fmin_l_bfgs_b" if again else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound
            self._process.fit(x[:, 1:], (y - self._shift) / self._scale)
        self._kernel = self._process.kernel_
        return self._process


def _kernel(entries: int) -> Any:
    """The kernel before it is fitted, for plans with so many entries."""
    return ConstantKernel(1.0, (0.1, 100.0)) * Matern(np.ones(entries), LENGTHS, nu=2.5) + WhiteKernel(1e-2, (1e-5, 0.5))


def lower_bound(model: Surrogate, plans: np.ndarray) -> np.ndarray:
    """The reward `(n,)` that plans, given as by `point`, `(n, d)`, are likely to reach: the prediction less one standard deviation."""
    mean, deviation = model(plans)
    return mean - deviation
