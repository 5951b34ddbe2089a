"""`Trial`: one recorded evaluation, the block of logging, caching and resuming."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from compress_env.rewards import Outcome
from compress_env.surgery.plan import Plan

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
    """A finished episode. repeated: the plan had been evaluated before and its outcome was used again.

    seconds: since the trial before, so that what the agent does in between counts; all else is the same for the same seed.
    """

    index: int
    plan: Plan
    outcome: Outcome
    reward: float
    reward_terms: dict[str, float]
    repeated: bool
    seed: int
    seconds: float
    versions: dict[str, str] = field(default_factory=versions)

    def to_json(self) -> str:
        """One line of JSON."""
        data = asdict(self) | {"plan": json.loads(self.plan.to_json()), "feasible": self.outcome.feasible}
        return json.dumps(data)

    @classmethod
    def from_json(cls, line: str) -> Trial:
        data: dict[str, Any] = json.loads(line)
        data.pop("feasible")
        plan = Plan.of(data["plan"]["removed"], data["plan"]["widths"])
        return cls(**{**data, "plan": plan, "outcome": Outcome(**data["outcome"])})

    def same(self, other: Trial) -> bool:
        """Equal in everything but the time it took and the versions that made it."""
        keep = ("index", "plan", "outcome", "reward", "reward_terms", "repeated", "seed")
        return all(getattr(self, k) == getattr(other, k) for k in keep)


def best_trial(trials: list[Trial]) -> Trial | None:
    """The trial with the highest reward among those that meet the budget and did not fail; the earliest of equals."""
    candidates = [t for t in trials if t.outcome.feasible and not t.outcome.failed]
    return max(candidates, key=lambda t: t.reward, default=None)
