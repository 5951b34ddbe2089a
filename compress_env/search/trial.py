"""`Trial`: one recorded evaluation, which is logged, cached and resumed from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.records import Damaged, record
from compress_env.surgery.plan import Plan

FORMAT = 2
"""Of a line of trials; counted up when an older line cannot be read any more."""
PACKAGES = ("compress-env", "torch", "gymnasium", "stable-baselines3", "scikit-learn", "torch-pruning", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Trial:
    """A judged student. All but `seconds` is the same for the same seed, unless something is measured.

    Attributes:
        index: Its number in the search.
        plan: The student.
        evaluation: Its numbers.
        limits: The limits that it was for, in each resource's unit.
        reward: Its reward.
        reward_terms: Named terms that add up to the reward.
        repeated: Whether the plan had been judged before, so that its numbers were used again.
        seed: Of the search.
        seconds: Since the trial before, so that the agent's own time counts.
        problem: `Problem.id` of its problem.
        ranking: `Ranking.id` of the order by which channels were kept.
    """

    index: int
    plan: Plan
    evaluation: Evaluation
    limits: Mapping[str, float]
    reward: float
    reward_terms: Mapping[str, float]
    repeated: bool
    seed: int
    seconds: float
    problem: str
    ranking: str

    @property
    def feasible(self) -> bool:
        """Whether every limit is met."""
        return self.evaluation.meets(self.limits)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {"format": FORMAT} | asdict(self) | {"plan": json.loads(self.plan.to_json())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """The trial of `to_json`. Raises UserError for one of another format, and Damaged if it is none."""
        data = dict(data)
        if (found := data.pop("format", 1)) != FORMAT:
            raise UserError(f"it is a trial of format {found!r}, and this version reads {FORMAT}; search again in another folder")
        trial = record(cls, data, plan=Plan.from_json(json.dumps(data.get("plan"))))
        missing = [name for name in trial.limits if name not in trial.evaluation.usage]
        if missing or trial.evaluation.usage.keys() != trial.evaluation.teacher_usage.keys():
            raise Damaged("the usage of student, teacher and limits is not of the same resources")
        return trial

    def same(self, other: Trial) -> bool:
        """Equal in everything but the time it took."""
        mine, others = asdict(self), asdict(other)
        for each in (mine, others):
            del each["seconds"], each["evaluation"]["seconds"]
        return mine == others


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first: those within the budget before the others, then by reward, the earliest of equals. Repeated plans are left out."""
    first = [t for t in trials if not t.repeated] or trials
    return sorted(first, key=lambda t: (not t.feasible, -t.reward))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest reward among those that meet the budget and did not fail; the earliest of equals."""
    candidates = [t for t in trials if t.feasible and not t.evaluation.failed]
    return max(candidates, key=lambda t: t.reward, default=None)


def reason_of_none(trials: Sequence[Trial]) -> str:
    """Why trials have no best one, as a sentence without an end: all students failed, or none is within the budget."""
    if not trials:
        return "no student was judged yet"
    failed = [t for t in trials if t.evaluation.failed]
    if failed and len(failed) == len(trials):
        return f"none of the {len(trials)} students could be evaluated ({failed[-1].evaluation.failed})"
    return f"none of the {len(trials)} students meets the budget"
