"""The tables of the report: rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress_env.report.formats import DASH, decimal, metric, percent, quantity, text, unit_beside
from compress_env.search.result import FinalPolicy, ResourceName, Result
from compress_env.search.store import flat
from compress_env.search.trial import Trial
from compress_env.settings import OBJECT


def comparison(result: Result) -> list[list[str]]:
    """Rows of the table of teacher and student: label, teacher, student, the student's share, and whether the budget is met."""
    teacher, student = result.teacher, result.student
    before, after = teacher.metric_test, student.metric_test
    points = 0 <= before <= 1 and 0 <= after <= 1
    change = f"{100 * (after - before):+.2f} points" if points else f"{after - before:+.2f}"
    rows = [[f"Test {result.metric}", metric(before), metric(after), change.replace("-", "−"), ""]]
    for name, resource in result.resources.items():
        used, whole, limit = student.usage.get(name), teacher.usage.get(name), result.budget.get(name)
        label, unit = resource.label, unit_beside(resource.label, resource.unit)
        verdict = ""
        if used is not None and limit is not None:
            verdict = f"budget met: {quantity(limit, unit)}" if used <= limit else f"over the budget of {quantity(limit, unit)}"
        rows.append([label, quantity(whole, unit), quantity(used, unit), percent(ratio(used, whole), 1), verdict])
    sizes = teacher.file_bytes, student.file_bytes
    rows.append(["File size", *(quantity(s, "bytes") for s in sizes), percent(ratio(sizes[1], sizes[0]), 1), ""])
    return rows


def found(best: Trial, policy: FinalPolicy | None, names: Mapping[str, ResourceName]) -> list[list[str]]:
    """Rows of the table of the best student that was found and the final policy's: label, best found, final policy."""
    evaluation = best.evaluation
    score = next(iter(evaluation.metrics))
    rows = [
        ["Trial", str(best.index), DASH],
        ["Reward", decimal(best.reward), decimal(policy.reward if policy else None)],
        [f"Validation {score}", metric(evaluation.metric), metric(policy.metrics.get(score) if policy else None)],
    ]
    for name in best.limits:
        label, unit = names[name].label, unit_beside(names[name].label, names[name].unit)
        whole = evaluation.teacher_usage[name]
        both = evaluation.usage[name], policy.usage.get(name) if policy else None
        cells = (DASH if u is None else f"{quantity(u, unit)} ({percent(ratio(u, whole), 1)})" for u in both)
        rows.append([label, *cells])
    return rows


def trial_row(trial: Trial, budgeted: Sequence[str]) -> list[str]:
    """A row of the table of the best trials."""
    evaluation = trial.evaluation
    shares = (ratio(evaluation.usage.get(n), evaluation.teacher_usage.get(n)) for n in budgeted)
    plan = trial.plan
    done = [f"without {', '.join(plan.removed)}"] if plan.removed else []
    done += [f"with {', '.join(plan.inserted)}"] if plan.inserted else []
    done += [f"{len(plan.widths)} group{'s' * (len(plan.widths) != 1)} resized"] if plan.widths else []
    return [
        str(trial.index), decimal(trial.reward), DASH if evaluation.failed else metric(evaluation.metric),
        *(percent(share, 1) for share in shares), "yes" if trial.feasible else "no", "; ".join(done) or "as the teacher",
    ]  # fmt: skip


def settings(run: Mapping[str, Any], result: Result | None) -> list[tuple[str, str]]:
    """Every setting in run.json, nested ones with dotted names, and how long the run took."""
    rows = [pair for name, value in flat(run).items() for pair in _dotted(name, value)]
    if result:
        rows.append(("time of the search", f"{decimal(result.seconds, 1)} s"))
        rows.append(("fine-tuning epochs", text(result.finetune["epochs"])))
        rows.append(("augmentation", text(result.finetune.get("augmentation", "?"))))
    return rows


def setting(value: Any) -> str:
    """A setting as text; an object by the name of its type."""
    return text(value[OBJECT] if isinstance(value, Mapping) and OBJECT in value else value)


def _dotted(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and OBJECT not in value:
        for key, inner in value.items():
            yield from _dotted(f"{name}.{key}", inner)
    else:
        yield name, setting(value)


def ratio(part: float | None, whole: float | None) -> float | None:
    """A share, None where there is none."""
    return part / whole if part is not None and whole else None
