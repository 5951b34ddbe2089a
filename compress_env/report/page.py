"""The report of a run: one HTML page without scripts or anything from outside, from the files in the run folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress_env.errors import UserError
from compress_env.files import write_text
from compress_env.report import plots
from compress_env.report.formats import (
    DASH,
    SPACE,
    decimal,
    html_table,
    in_sentence,
    metric,
    percent,
    quantity,
    text,
    unit_beside,
)
from compress_env.report.promise import HEAD, rows, sentences
from compress_env.report.runs import state_of
from compress_env.search.promise import attempts_in
from compress_env.search.result import FinalPolicy, ResourceName, Result
from compress_env.search.store import RunFolder, flat
from compress_env.search.trial import Trial, best_trial, ranked
from compress_env.search.trials import Trials
from compress_env.spec import OBJECT

BEST = 10
"""Trials in the table."""
BEST_HEAD_END = ("Fits", "Removed", "Narrowed")


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder.

    Without `result.json` the page shows the search alone and says how to go on.

    Args:
        folder: The run folder.

    Returns:
        The path of the page.

    Raises:
        UserError: If there is no trial, or a file that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"report: there is no run folder {folder}; make one with `compress-env search --out {folder}`")
    run = RunFolder(folder)
    trials = run.trials()
    if not trials:
        raise UserError(f"report: the run folder {folder} holds no trial yet; let `compress-env search` finish at least one")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(content(run.recorded(), trials, run.result(), folder))
    path = folder / "report.html"
    write_text(path, page)
    return path


def still_going(folder: str | Path) -> str:
    """A sentence without an end if another process works on a run: how far it is. "" if none does. No lock is taken."""
    state = state_of(Path(folder))
    if state.state != "running" or state.reason == f"process {os.getpid()}":
        return ""
    left = state.done < (state.asked or 0)
    done = f"{state.done} of {state.asked} evaluations so far" if left else f"{state.done} evaluations are done"
    return f"this run is still going ({state.reason}): {done}"


def content(run: Mapping[str, Any], trials: Sequence[Trial], result: Result | None, folder: Path) -> dict[str, Any]:
    """Everything that the template shows, as text, tables (lists of rows of text) and inline SVG.

    Args:
        run: The content of `run.json`.
        trials: All trials, at least one.
        result: The outcome, if there is one.
        folder: The run folder, for the command that goes on.
    """
    attempts, going = result.promise.attempts if result and result.promise else attempts_in(folder), still_going(folder)
    best = next((t for t in trials if result and t.index == result.best_trial), None) or best_trial(trials) or ranked(trials)[0]
    budgeted = list(best.limits)
    names = dict(result.resources) if result else {}
    names |= {name: ResourceName.of(name) for name in best.evaluation.usage if name not in names}
    score, teacher = next(iter(best.evaluation.metrics)), best.evaluation.teacher_metric
    versions = run["versions"] | (dict(result.versions) if result else {})
    figures = [
        ("Layers", "Outline: the teacher; filled: the student.", plots.layers(result.layers) if result else ""),
        ("Reward of the search", "", plots.reward_curve(trials)),
        *(
            (f"{_capital(score)} against {in_sentence(names[name].label)}",
             f"{_capital(score)} of the quick evaluation, before fine-tuning. No trial beats those on the front in both.",
             plots.plane(trials, name, names[name].label, best))
            for name in budgeted
        ),
        ("Fine-tuning", f"The teacher's line is its {score} in the quick evaluation.",
         plots.finetuning(result.finetune["history"], score, teacher) if result else ""),
    ]  # fmt: skip
    return {
        "teacher": setting(flat(run)["teacher"]),
        "headline": headline(setting(flat(run)["teacher"]), trials, best, result, names),
        "going": going,
        "again": f"compress-env report --out {shlex.quote(str(folder))}",
        "go_on": "" if result or attempts or going else f"compress-env finetune --out {shlex.quote(str(folder))}",
        "comparison": comparison(result) if result else [],
        "promise": sentences(result.promise, result.metric) if result and result.promise else [],
        "attempt_head": HEAD,
        "attempt_rows": rows(attempts),
        "figures": [(title, note, Markup(svg)) for title, note, svg in figures if svg],
        "found": found(best, result.final_policy if result else None, names),
        "best_head": ["Trial", "Reward", _capital(score), *(f"{names[n].label} / teacher" for n in budgeted), *BEST_HEAD_END],
        "best_rows": [trial_row(t, budgeted) for t in ranked(trials)[:BEST]],
        "settings": settings(run, result),
        "versions": [(name, text(value)) for name, value in versions.items()],
        "command": text(run["command"] or (result and result.command)),
    }


def headline(
    teacher: str, trials: Sequence[Trial], best: Trial, result: Result | None, names: Mapping[str, ResourceName]
) -> str:
    """One sentence with the outcome of the run."""
    if result:
        student, whole = result.student, result.teacher
        used = {n: _ratio(student.usage.get(n), whole.usage.get(n)) for n in best.limits}
        missed = "" if result.feasible else " (over the budget)"
        values = metric(student.metric_test, 1), metric(whole.metric_test, 1)
        return f"{teacher}{_at(used, names)}{missed}: {values[0]} test {result.metric}, teacher {values[1]}"
    evaluation = best.evaluation
    used = {n: _ratio(evaluation.usage[n], evaluation.teacher_usage[n]) for n in best.limits}
    value, whole_value = metric(evaluation.metric, 1), metric(evaluation.teacher_metric, 1)
    return (
        f"{teacher}{_at(used, names)}: {value} validation {next(iter(evaluation.metrics))} before fine-tuning, best of "
        f"{len(trials)} trial{'s' * (len(trials) != 1)}, teacher {whole_value}"
    )


def comparison(result: Result) -> list[list[str]]:
    """Rows of the table of teacher and student: label, teacher, student, the student's share, limit and whether it is met."""
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
            verdict = f"{'yes' if used <= limit else 'no'}, limit {quantity(limit, unit)}"
        if resource.measured and result.runtime:
            label = f"{label}, {result.runtime}"
        rows.append([label, quantity(whole, unit), quantity(used, unit), percent(_ratio(used, whole), 1), verdict])
    sizes = teacher.file_bytes, student.file_bytes
    rows.append(["File size", *(quantity(s, "bytes") for s in sizes), percent(_ratio(sizes[1], sizes[0]), 1), ""])
    return rows


def as_html(result: Result | None, trials: Trials, report: Path) -> str:
    """The outcome of a run for notebooks: teacher and student, or the best trials where no student was distilled."""
    if result:
        return html_table(["", "teacher", "student", "share or change", "budget met"], comparison(result), f"Report: {report}")
    head, rows = Trials(trials.best_first()[:BEST]).chief()
    return html_table(head, rows, f"The best of {len(trials)} trials, before distillation. Report: {report}")


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
        cells = (DASH if u is None else f"{quantity(u, unit)} ({percent(_ratio(u, whole), 1)})" for u in both)
        rows.append([label, *cells])
    return rows


def trial_row(trial: Trial, budgeted: Sequence[str]) -> list[str]:
    """A row of the table of the best trials."""
    evaluation = trial.evaluation
    shares = (_ratio(evaluation.usage.get(n), evaluation.teacher_usage.get(n)) for n in budgeted)
    return [
        str(trial.index), decimal(trial.reward), DASH if evaluation.failed else metric(evaluation.metric),
        *(percent(share, 1) for share in shares), "yes" if trial.feasible else "no",
        ", ".join([*trial.plan.removed, *(f"+{name}" for name in trial.plan.inserted)]) or "nothing",
        f"{len(trial.plan.widths)} groups",
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


def _at(used: Mapping[str, float | None], names: Mapping[str, ResourceName]) -> str:
    parts = [f"{100 * share:.3g}{SPACE}% of its {in_sentence(names[n].label)}" for n, share in used.items() if share is not None]
    return f" at {' and '.join(parts)}" if parts else ""


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
