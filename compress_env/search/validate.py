"""Judge recorded trials again: a result that does not reproduce is no result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from compress_env.objective import Objective
from compress_env.search.trial import Trial


def differences(objective: Objective, trials: Sequence[Trial], count: int) -> tuple[int, list[str]]:
    """Judge the `count` best distinct plans of `trials` again, and everything that their rewards are made of.

    Compared are metrics, KL, every usage that is computed, the reward and its terms, and the ids of problem and ranking. Measured usage
    is left out: it is never the same twice.

    Args:
        objective: The objective that the trials are said to be of.
        trials: As recorded.
        count: How many plans to judge.

    Returns:
        How many were judged, and a line for each trial that differs.
    """
    distinct = {t.plan.key: t for t in trials}.values()
    chosen = sorted(distinct, key=lambda t: -t.reward)[:count]
    wrong = []
    for trial in chosen:
        line = next(_differing(objective, trial), None)
        if line:
            wrong.append(f"trial {trial.index}: {line}")
    return len(chosen), wrong


def _differing(objective: Objective, trial: Trial) -> Iterator[str]:
    problem, recorded = objective.problem, trial.evaluation
    for name, before, now in (("problem", trial.problem, problem.id), ("ranking", trial.ranking, problem.ranking.id)):
        if before != now:
            yield f"it was recorded for the {name} {before}, and this one is {now}"
    problem.cost_model.remember(trial.plan, recorded.usage, recorded.teacher_usage)  # it is not measured again
    found = objective.evaluator(trial.plan)
    computed = [n for n in found.usage if n not in problem.cost_model.measured]
    measured = {n: v for n, v in recorded.usage.items() if n not in computed}
    as_measured = replace(found, usage={**found.usage, **measured}, teacher_usage={**recorded.teacher_usage})
    reward, terms = objective.reward(as_measured, trial.limits)
    pairs = {
        **{name: (recorded.metrics.get(name), value) for name, value in found.metrics.items()},
        "kl": (recorded.kl, found.kl),
        **{name: (recorded.usage.get(name), found.usage[name]) for name in computed},
        **{f"the teacher's {n}": (recorded.teacher_metrics.get(n), v) for n, v in found.teacher_metrics.items()},
        **{f"the teacher's {n}": (recorded.teacher_usage.get(n), found.teacher_usage[n]) for n in computed},
        "failed": (recorded.failed, found.failed),
        "reward": (trial.reward, reward),
        **{f"reward term {n}": (trial.reward_terms.get(n), v) for n, v in terms.items()},
    }
    for name, (before, now) in pairs.items():
        if before != now:
            yield f"{name} was {before!r}, is now {now!r}"
