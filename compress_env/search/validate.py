"""Judge recorded trials again: a result that does not reproduce is no result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compress_env.objective import Objective
from compress_env.search.trial import Trial

ROUNDING = 1e-9
"""Of limits, as a share."""


def differences(objective: Objective, trials: Sequence[Trial], count: int) -> tuple[int, list[str]]:
    """Judge the best distinct plans of some trials again, and everything that their rewards are made of.

    Compared are metrics, KL, every usage that is computed, the reward and its terms, the limits with the budget, and the ids of
    problem and ranking. Measured usage (`CostModel.measured`) is taken as recorded: it is never the same twice.

    Args:
        objective: The objective that the trials are said to be of, freshly made, so that it knows none of them.
        trials: As recorded. All trials of the chosen plans are compared, repeated ones included.
        count: How many plans to judge.

    Returns:
        How many plans were judged, and a line for each trial that differs.
    """
    best_first = sorted(trials, key=lambda t: -t.reward)
    chosen = set(list(dict.fromkeys(t.plan for t in best_first))[:count])
    wrong = []
    for trial in (t for t in best_first if t.plan in chosen):
        if line := next(_differing(objective, trial), None):
            wrong.append(f"trial {trial.index}: {line}")
    return len(chosen), wrong


def _differing(objective: Objective, trial: Trial) -> Iterator[str]:
    problem, recorded = objective.problem, trial.evaluation
    for name, before, now in (("problem", trial.problem, problem.id), ("ranking", trial.ranking, problem.ranking.id)):
        if before != now:
            yield f"it was recorded for the {name} {before}, and this one is {now}"
    measured = problem.cost_model.measured
    lows, highs = objective.budgets(2)[0], objective.budgets(2)[-1]
    for name in {*lows, *trial.limits} - measured:
        low, limit, high = lows.get(name), trial.limits.get(name), highs.get(name)
        if low is None or limit is None or high is None or not low * (1 - ROUNDING) <= limit <= high * (1 + ROUNDING):
            yield f"its limit on {name} is {limit!r}, and the budget goes from {low!r} to {high!r}"
    problem.cost_model.remember(trial.plan, recorded.usage, recorded.teacher_usage)  # it is not measured again
    found = objective.evaluator(trial.plan)
    # The reward is that of the numbers found now, but for those that are measured.
    kept = {n: v for n, v in recorded.usage.items() if n in measured}
    kept_teacher = {n: v for n, v in recorded.teacher_usage.items() if n in measured}
    found = replace(found, usage={**found.usage, **kept}, teacher_usage={**found.teacher_usage, **kept_teacher})
    reward, terms = objective.reward(found, trial.limits)
    yield from _unequal("", recorded.metrics, found.metrics)
    yield from _unequal("the teacher's ", recorded.teacher_metrics, found.teacher_metrics)
    yield from _unequal("", {"kl": recorded.kl, "failed": recorded.failed}, {"kl": found.kl, "failed": found.failed})
    yield from _unequal("", recorded.usage, found.usage)
    yield from _unequal("the teacher's ", recorded.teacher_usage, found.teacher_usage)
    yield from _unequal("", {"reward": trial.reward}, {"reward": reward})
    yield from _unequal("reward term ", trial.reward_terms, terms)


def _unequal(prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in (*now, *(n for n in before if n not in now)):
        if name not in before or name not in now or before[name] != now[name]:
            yield f"{prefix}{name} was {before.get(name)!r}, is now {now.get(name)!r}"
