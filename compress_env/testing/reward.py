"""`check_reward`: whether a reward is a pure, finite function that asks for better students."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from compress_env import rewards
from compress_env.evaluation import Evaluation
from compress_env.rewards import REWARDS
from compress_env.testing.require import calling, named, number, require

METRICS = (0.0, 0.1, 0.5, 0.9, 0.95, 1.0)
TEACHER = 0.95
KL = {0.0: 3.0, 0.1: 2.3, 0.5: 1.0, 0.9: 0.2, 0.95: 0.05, 1.0: 0.0}
"""A divergence in nats that goes with each metric."""
SHARES = (0.05, 0.3, 0.5, 1.0)


def check_reward(
    reward: Any, *, resources: Sequence[str] = ("macs", "memory", "params"), metric: str = "metric"
) -> None:
    """Check that a reward can be trusted with a search, on a grid of evaluations.

    It gives a finite number, or a dict of named ones; the same for the same evaluation; it changes nothing; it does not fall when
    the metric rises and the divergence falls, nor rise with the MACs alone; it copes with a student that failed and with one whose
    divergence was not measured.

    Args:
        reward: A name, `module:attribute` or `path/to/file.py:attribute`, or a function of an evaluation and its limits.
        resources: The resources whose usages and limits it may read.
        metric: The name of the task's main metric.

    Raises:
        AssertionError: Naming the reward and what is wrong.
    """
    what = named("reward", reward)
    with calling(what):
        function = REWARDS.get(reward) if isinstance(reward, str) else reward
    require(callable(function), f"{what} is {function!r}, which cannot be called")
    teacher_usage = dict.fromkeys(resources, 1e6)
    for share, measured, tight in itertools.product(SHARES, (True, False), (0.4, 1.0)):
        limits = dict.fromkeys(resources, tight * 1e6)
        usage = {name: share * 1e6 for name in resources}

        def of(value: float, usage: dict[str, float] = usage, measured: bool = measured) -> Evaluation:
            kl = KL[value] if measured else None
            return _frozen(Evaluation({metric: value}, kl, usage, {metric: TEACHER}, teacher_usage))

        values = [_value(what, function, of(value), limits) for value in METRICS]
        for (low, worse), (high, better) in itertools.pairwise(zip(METRICS, values)):
            require(
                better >= worse - 1e-12,
                f"{what} falls from {worse:.6g} to {better:.6g} when the {metric} rises from {low} to {high}",
            )
        if "macs" in resources:
            more = _value(what, function, of(0.9, {**usage, "macs": 2 * usage["macs"]}), limits)
            less = values[METRICS.index(0.9)]
            require(
                more <= less + 1e-12, f"{what} rises from {less:.6g} to {more:.6g} when a student needs twice the MACs"
            )
        failed = replace(of(0.0), kl=None, failed="the student diverged")
        with calling(f"{what} of a student that failed"):
            total, _ = rewards.evaluate(function, failed, MappingProxyType(limits))
        require(total == rewards.FAILED, f"{what} gives {total} to a student that failed instead of {rewards.FAILED}")


def _value(what: str, reward: Callable[..., Any], evaluation: Evaluation, limits: dict[str, float]) -> float:
    with calling(f"{what} of {evaluation}"):
        found, again = (reward(evaluation, MappingProxyType(limits)) for _ in range(2))
    require(found == again, f"{what} gives {found} first and {again} then for the same evaluation")
    if not isinstance(found, dict):
        return number(found, what)
    require(bool(found), f"{what} gives no terms")
    require(all(isinstance(name, str) for name in found), f"{what} has terms whose names are no strings: {list(found)}")
    return sum(number(value, f"{what}: its term {name!r}") for name, value in found.items())


def _frozen(evaluation: Evaluation) -> Evaluation:
    """The same evaluation, whose mappings cannot be changed."""
    return replace(
        evaluation,
        metrics=MappingProxyType(dict(evaluation.metrics)),
        usage=MappingProxyType(dict(evaluation.usage)),
        teacher_metrics=MappingProxyType(dict(evaluation.teacher_metrics)),
        teacher_usage=MappingProxyType(dict(evaluation.teacher_usage)),
    )
