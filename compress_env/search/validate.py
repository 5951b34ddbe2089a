"""Replay recorded trials: a result that does not reproduce is no result."""

from __future__ import annotations

from compress_env.distill.evaluator import EvaluationFailed
from compress_env.search.trial import Trial
from compress_env.surgery.build import build_student


def differences(env, trials: list[Trial], count: int) -> tuple[int, list[str]]:
    """Evaluate the `count` best distinct plans of `trials` again: how many were checked, and a line for each that differs.

    Compared are accuracy and every usage that is computed; what is measured is left out. `env` is an unwrapped `LayerRemovalEnv`.
    """
    distinct = {t.plan.key: t for t in trials}.values()
    chosen = sorted(distinct, key=lambda t: -t.reward)[:count]
    wrong = []
    for trial in chosen:
        student = build_student(env.teacher.module, env.graph, trial.plan)  # counted where the teacher is
        usage = env.cost_model.count(student, trial.plan)
        try:
            accuracy = env.evaluator(student.to(env.device), trial.plan).accuracy
        except EvaluationFailed:
            accuracy = 0.0
        found = {"accuracy": accuracy} | {n: v for n, v in usage.items() if n not in env.cost_model.measured}
        recorded = {"accuracy": trial.outcome.accuracy} | dict(trial.outcome.usage)
        for name, value in found.items():
            if value != recorded[name]:
                wrong.append(f"trial {trial.index}: {name} was {recorded[name]:.10g}, is now {value:.10g}")
                break
    return len(chosen), wrong
