"""Rewards: pure functions of an `Evaluation` and its limits, one a formula.

A new one is a function with a decorator, or `module:attribute`. A reward is a number, or a dict of named terms that add up to it.
Plain Python only: neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.registry import Registry

REWARDS = Registry("reward")
FAILED = -1.0
"""Reward of a student that could not be evaluated, as N2N gives to degenerate architectures."""

Limits = Mapping[str, float]
"""Limit a resource, in its unit."""
Reward = Callable[[Evaluation, Limits], "float | dict[str, float]"]


def evaluate(reward: Reward, evaluation: Evaluation, limits: Limits) -> tuple[float, dict[str, float]]:
    """The reward of an evaluation and its terms, of which "failed" is one; a failed student gets FAILED and no other term.

    Raises:
        UserError: If it raises anything, or is no finite number; the message names the reward and the evaluation.
    """
    name = getattr(reward, "__name__", repr(reward))
    try:
        found = reward(evaluation, limits)
        terms = {key: float(value) for key, value in (found if isinstance(found, dict) else {name: found}).items()}
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        if not evaluation.failed:
            raise UserError(
                f"reward {name!r} raised {type(error).__name__} ({error}) for {evaluation}; it has to give a number, or a dict of them"
            ) from error
        terms = {}  # the metrics of one that failed are 0, which not every formula takes
    terms = dict.fromkeys(terms, 0.0) | {"failed": FAILED} if evaluation.failed else terms | {"failed": 0.0}
    total = sum(terms.values())
    if not math.isfinite(total):
        raise UserError(f"reward {name!r} gave {terms} for {evaluation}; it has to be finite")
    return total, terms


@REWARDS.register("relative")
def relative(evaluation: Evaluation, limits: Limits) -> dict[str, float]:
    """How close the student will come to the teacher (`Evaluation.proxy_score`), less the relative excess over limits; the default.

    With hard limits the second term is 0. With soft limits it is -sum(max(0, usage / limit - 1)): twice the budget costs as
    much as the whole accuracy (a hinge as in MnasNet's hard-constraint reward, Tan et al. 2019, but additive, so that it stays
    informative where the score is low).
    """
    return {"score": evaluation.proxy_score, "resource": 0.0 - _excess(evaluation, limits)}


def _excess(evaluation: Evaluation, limits: Limits) -> float:
    return sum(max(0.0, evaluation.usage[name] / limit - 1) for name, limit in limits.items())


@REWARDS.register("metric")
def metric(evaluation: Evaluation, limits: Limits) -> dict[str, float]:
    """The student's metric, less the relative excess over limits, as in `relative`; the default where a network grows."""
    return {"metric": evaluation.metric, "resource": 0.0 - _excess(evaluation, limits)}


@REWARDS.register("eas")
def eas(evaluation: Evaluation, limits: Limits) -> float:
    """tan(metric * pi / 2), so that a point more counts for more the nearer it is to 1 (Cai et al., AAAI 2018, section 4.1).

    A metric above 0.999 counts as that.
    """
    return math.tan(min(evaluation.metric, 0.999) * math.pi / 2)


@REWARDS.register("n2n")
def n2n(evaluation: Evaluation, limits: Limits) -> float:
    """C (2 - C) * metric / teacher's metric, with C the share of parameters removed (Ashok et al., ICLR 2018, section 3.3)."""
    compression = 1 - evaluation.size
    return compression * (2 - compression) * evaluation.metric / evaluation.teacher_metric


def annealed(reward: float, fits: bool, update: int, updates: int = 15) -> float:
    """The reward of a student under a constraint that tightens while an agent learns (`getConstrainedReward` of N2N's authors).

    Above a limit it is (e - 1) + e * reward, with e = (1 - update / updates)^4, from `updates` on 0: at first there is no penalty, in
    the end the student gets -1.

    Args:
        reward: Its reward without the constraint.
        fits: Whether it is within every limit.
        update: How often the agent has been updated.
        updates: When e is 0.
    """
    if fits:
        return reward
    share = max(0.0, 1 - update / updates) ** 4
    return share - 1 + share * reward


@REWARDS.register("amc_error")
def amc_error(evaluation: Evaluation, limits: Limits) -> float:
    """Minus the error, in [-1, 0]: the budget is kept by the bounds on actions alone (He et al., ECCV 2018, section 3.2)."""
    return evaluation.metric - 1


@REWARDS.register("amc_flops")
def amc_flops(evaluation: Evaluation, limits: Limits) -> float:
    """Minus the error times the logarithm of the MACs (He et al., ECCV 2018, equation 4, which calls them FLOPs)."""
    return (evaluation.metric - 1) * math.log(evaluation.usage["macs"])
