"""Rewards: pure functions of an `Outcome`, one a formula. A new one is a function with a decorator, or `module:attribute`.

A reward is a number, or a dict of named terms that add up to it. Plain Python only: neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress_env.errors import UserError
from compress_env.registry import Registry

REWARDS = Registry("reward")
CAPACITY = 0.3
"""Exponent of the size in `prospect`."""
FAILED = -1.0
"""Reward of a student that could not be evaluated, as N2N gives to degenerate architectures."""


def prospect(likeness: float, size: float) -> float:
    """1 / (1 + KL / size^0.3), in [0, 1]: where a student will come to that is not trained yet.

    likeness: exp(-KL(teacher || student)) of their predictions. size: share of the teacher's parameters. Of two students that start
    equally far from the teacher, the one with more parameters comes closer. On few images the likeness also tells students apart
    that differ by less than an image in accuracy. The exponent is a good one for two draws of random plans of ResNet-20
    (`compress-env bench fidelity`).
    """
    return size**CAPACITY / (size**CAPACITY - math.log(likeness)) if likeness > 0 else 0.0


@dataclass(frozen=True)
class Outcome:
    """What came out of one finished episode. Accuracies in [0, 1] on validation images; usage and budget in each resource's unit.

    failed: why there is no accuracy (which is then 0), or "". likeness: exp(-KL(teacher || student)) of their predictions on the
    same images, in [0, 1], 1 for the teacher itself; None if it was not measured.
    """

    accuracy: float
    teacher_accuracy: float
    usage: Mapping[str, float]
    teacher_usage: Mapping[str, float]
    budget: Mapping[str, float]
    failed: str = ""
    likeness: float | None = None

    @property
    def score(self) -> float:
        """The best prediction there is of what becomes of a student in distillation, in [0, 1], 1 for the teacher: `prospect`.

        Without a likeness, it is the accuracy relative to the teacher's.
        """
        if self.likeness is None:
            return self.accuracy / self.teacher_accuracy
        return prospect(self.likeness, self.usage["params"] / self.teacher_usage["params"])

    @property
    def feasible(self) -> bool:
        """Whether every limit is met."""
        return all(self.usage[name] <= limit for name, limit in self.budget.items())


Reward = Callable[[Outcome], "float | dict[str, float]"]


def evaluate(reward: Reward, outcome: Outcome) -> tuple[float, dict[str, float]]:
    """The reward of an outcome and its terms, of which "failed" is one; a failed student gets FAILED and no other term.

    Raises UserError if the reward is not a finite number.
    """
    terms = reward(outcome)
    if not isinstance(terms, dict):
        terms = {getattr(reward, "__name__", "reward"): terms}
    terms = {name: 0.0 if outcome.failed else float(value) for name, value in terms.items()}
    terms["failed"] = FAILED if outcome.failed else 0.0
    total = sum(terms.values())
    if not math.isfinite(total):
        raise UserError(
            f"reward {getattr(reward, '__name__', reward)!r} gave {terms} for {outcome}; it has to be finite"
        )
    return total, terms


@REWARDS.register("relative")
def relative(outcome: Outcome) -> dict[str, float]:
    """How close the student will come to the teacher (`Outcome.score`), minus the relative excess over each limit; the default.

    With hard limits the second term is 0. With soft limits it is -sum(max(0, usage / limit - 1)): twice the budget costs as
    much as the whole accuracy (a hinge as in MnasNet's hard-constraint reward, Tan et al. 2019, but additive, so that it stays
    informative where the accuracy is low).
    """
    excess = sum(max(0.0, outcome.usage[name] / limit - 1) for name, limit in outcome.budget.items())
    return {"score": outcome.score, "resource": 0.0 - excess}


@REWARDS.register("n2n")
def n2n(outcome: Outcome) -> float:
    """C (2 - C) * accuracy / teacher accuracy, with C the share of parameters removed (Ashok et al., ICLR 2018, section 3.3)."""
    compression = 1 - outcome.usage["params"] / outcome.teacher_usage["params"]
    return compression * (2 - compression) * outcome.accuracy / outcome.teacher_accuracy


@REWARDS.register("amc_error")
def amc_error(outcome: Outcome) -> float:
    """Minus the error, in [-1, 0]: the budget is kept by the bounds on actions alone (He et al., ECCV 2018, section 3.2)."""
    return outcome.accuracy - 1


@REWARDS.register("amc_flops")
def amc_flops(outcome: Outcome) -> float:
    """Minus the error times the logarithm of the MACs (He et al., ECCV 2018, equation 4, which calls them FLOPs)."""
    return (outcome.accuracy - 1) * math.log(outcome.usage["macs"])
