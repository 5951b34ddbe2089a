"""The honest winner: the best students of a search are judged on images that it did not see, too, before one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from compress_env.evaluation import Evaluation
from compress_env.objective import Objective
from compress_env.search.trial import Trial, ranked

FINALISTS = 10
"""How many students are judged again. The best of hundreds owes some of its reward to the images that it was chosen on."""


def choose(objective: Objective, trials: Sequence[Trial], progress: bool = False) -> tuple[Trial, Evaluation] | None:
    """The best student of a search, judged on all validation images; half of them at most are the search's own.

    Args:
        objective: What the search was judged by.
        trials: All that were recorded.
        progress: Whether to show how far it is.

    Returns:
        The trial that is chosen, with the evaluation on all images; None if no student meets the budget.
    """
    finalists = [t for t in ranked(trials) if t.feasible and not t.evaluation.failed][:FINALISTS]
    measured = objective.problem.cost_model.measured
    found: list[tuple[float, int, Evaluation]] = []
    for i, trial in enumerate(tqdm(finalists, desc="finalists", unit="student", disable=not progress)):
        objective.problem.cost_model.remember(trial.plan, trial.evaluation.usage, trial.evaluation.teacher_usage)
        judged = objective.final_evaluator(trial.plan)
        recorded = {n: v for n, v in trial.evaluation.usage.items() if n in measured}
        judged = replace(judged, usage={**judged.usage, **recorded})
        reward, _ = objective.reward(judged, trial.limits)
        found.append((reward, -i, judged))
    if not found:
        return None
    _, place, judged = max(found, key=lambda each: each[:2])
    return finalists[-place], judged
