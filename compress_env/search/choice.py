"""The honest winner: the best students of a search are judged on images that it did not see, too, before one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from compress_env.errors import EveryStudentFailed
from compress_env.evaluation import Evaluation
from compress_env.evaluator import PlanEvaluator
from compress_env.files import JsonLines
from compress_env.objective import Objective
from compress_env.rewards import FAILED
from compress_env.search.trial import Trial, ranked

FINALISTS = 10
"""How many students are judged again. The best of hundreds owes some of its reward to the images that it was chosen on."""


FINALISTS_FILE = "finalists.jsonl"


@dataclass(frozen=True)
class Finalist:
    """One of a search's best students.

    Attributes:
        trial: As it was recorded by the search.
        evaluation: Its numbers on all validation images.
        reward: Its reward by these.
    """

    trial: Trial
    evaluation: Evaluation
    reward: float


class Finalists:
    """The best students of a search, judged on all validation images; half of them at most are the search's own.

    Each is written into the run folder when it is judged, those that fail with the reason, so that nothing is judged twice.

    Args:
        objective: What the search was judged by.
        trials: All that were recorded.
        folder: The run folder; None if nothing is to be kept.
        evaluator: Judges them by less than all images; only without a folder.
    """

    def __init__(
        self, objective: Objective, trials: Sequence[Trial], folder: Path | None = None, evaluator: PlanEvaluator | None = None
    ):
        self.objective, self.trials, self._evaluator = objective, trials, evaluator
        self._file = JsonLines(folder / FINALISTS_FILE, Trial) if folder else None
        ids = (objective.problem.id, objective.problem.ranking.id)
        rows = self._file.read() if self._file else []
        self._known = {(t.index, t.plan): t for t in rows if (t.problem, t.ranking) == ids and not t.evaluation.transient}

    def ranked(self, progress: bool = False) -> list[Finalist]:
        """Those that did not fail, the best first.

        Args:
            progress: Whether to show how far it is.

        Raises:
            EveryStudentFailed: If none is left; the message has the reason of the last one.
        """
        candidates = [t for t in ranked(self.trials) if t.feasible and not t.evaluation.failed]
        found: list[Finalist] = []
        reasons: list[str] = []
        bar = tqdm(candidates, total=min(FINALISTS, len(candidates)), desc="finalists", unit="student", disable=not progress)
        for trial in bar:
            evaluation, reward = self._judged(trial)
            if evaluation.failed:
                reasons.append(evaluation.failed)
            else:
                found.append(Finalist(trial, evaluation, reward))
            if len(found) == FINALISTS or len(reasons) == FINALISTS and not found:
                break
        if reasons and not found:
            raise EveryStudentFailed(f"none of the best {len(reasons)} students can be evaluated after the search ({reasons[-1]})")
        return sorted(found, key=lambda each: -each.reward)

    def known(self, trial: Trial) -> Evaluation:
        """The numbers of a trial's student on all validation images; those of the search if that is all there is."""
        return self._known.get((trial.index, trial.plan), trial).evaluation

    def failed(self, finalist: Finalist, reason: str) -> None:
        """Record that a finalist failed later on, because of itself."""
        nothing = dict.fromkeys(finalist.evaluation.metrics, 0.0)
        self._record(finalist.trial, replace(finalist.evaluation, metrics=nothing, kl=None, failed=reason), FAILED)

    def _judged(self, trial: Trial) -> tuple[Evaluation, float]:
        if known := self._known.get((trial.index, trial.plan)):
            return known.evaluation, self.objective.reward(known.evaluation, trial.limits)[0]
        problem = self.objective.problem
        problem.cost_model.remember(trial.plan, trial.evaluation.usage, trial.evaluation.teacher_usage)
        judged = (self._evaluator or self.objective.final_evaluator)(trial.plan)
        recorded = {n: v for n, v in trial.evaluation.usage.items() if n in problem.cost_model.measured}
        judged = replace(judged, usage={**judged.usage, **recorded})
        reward, _ = self.objective.reward(judged, trial.limits)
        self._record(trial, judged, reward)
        return judged, reward

    def _record(self, trial: Trial, evaluation: Evaluation, reward: float) -> None:
        row = replace(trial, evaluation=evaluation, reward=reward, reward_terms={})
        self._known[trial.index, trial.plan] = row
        if self._file:
            self._file.append(row)
