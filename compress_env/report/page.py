"""The report of a run: one HTML page without scripts or anything from outside, from the files in the run folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.errors import UserError
from compress_env.files import write_text
from compress_env.problem import Measured
from compress_env.report import plots, tables
from compress_env.report.decisions import decision_rows, total
from compress_env.report.formats import SPACE, decimal, html_table, in_sentence, metric, text
from compress_env.report.next_steps import Next
from compress_env.report.parts import PARTS, Parts
from compress_env.report.promise import HEAD, rows, sentences
from compress_env.report.runs import state_of
from compress_env.report.tables import ratio, setting
from compress_env.search.promise import attempts_in
from compress_env.search.reopened import kept
from compress_env.search.result import ResourceName, Result
from compress_env.search.store import RunFolder, flat
from compress_env.search.trial import Trial, best_trial, ranked
from compress_env.search.trials import Trials

BEST = 10
"""Trials in the table."""
BEST_HEAD_END = ("Fits", "Plan")


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
        run.read("run.json")  # or it says that this is no run folder
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


def outdated(result: Result, count: int) -> str:
    """A sentence if a search was gone on with, to so many trials, after its result was written, which leaves out the later ones."""
    if result.evaluations >= count:
        return ""
    first = f"{result.evaluations} of {count} trials" if result.evaluations > 1 else f"of {count} trials"
    return f"This result is of the first {first}; go on with --resume, or with compress-env finetune."


def content(run: Mapping[str, Any], trials: Sequence[Trial], result: Result | None, folder: Path) -> dict[str, Any]:
    """Everything that the template shows, as text, tables (lists of rows of text) and inline SVG.

    Args:
        run: The content of `run.json`.
        trials: All trials, at least one.
        result: The outcome, if there is one.
        folder: The run folder.

    Raises:
        UserError: For a file of the folder that cannot be read.
    """
    attempts, going = result.promise.attempts if result and result.promise else attempts_in(folder), still_going(folder)
    best = next((t for t in trials if result and t.index == result.best_trial), None) or best_trial(trials) or ranked(trials)[0]
    budgeted = list(best.limits)
    names = dict(result.resources) if result else {}
    names |= {name: ResourceName.of(name) for name in best.evaluation.usage if name not in names}
    score, teacher = next(iter(best.evaluation.metrics)), best.evaluation.teacher_metric
    begun, asked = run["search"]["evaluations"], RunFolder(folder).asked()
    now = {**run, "search": {**run["search"], "evaluations": asked}}
    versions = run["versions"] | (dict(result.versions) if result else {})
    policy, shown = result.final_policy if result else None, ranked(trials)[:BEST]
    shown += [best] if best not in shown else []
    return {
        "teacher": setting(flat(run)["teacher"]),
        "headline": headline(setting(flat(run)["teacher"]), trials, best, result, names),
        "going": going,
        "outdated": outdated(result, len(trials)) if result else "",
        "again": f"compress-env report --out {shlex.quote(str(folder))}",
        "steps": [] if going else Next(folder, now, trials, best, result, bool(attempts)).steps(),
        "comparison": tables.comparison(result) if result else [],
        "runtime": measured_with(result) if result else "",
        "promise": sentences(result.promise, result.metric) if result and result.promise else [],
        "attempt_head": HEAD,
        "attempt_rows": rows(attempts),
        "planes": [
            _figure(f"{_capital(score)} against {in_sentence(names[name].label)}",
                    f"{_capital(score)} on validation examples, before fine-tuning. No trial beats those on the front in both.",
                    plots.plane(trials, name, names[name].label, best, _distilled(result, name)))
            for name in budgeted
        ],
        "why": why(RunFolder(folder), best, names),
        "figures": [
            *([_figure("Layers", "Outline: the teacher; filled: the student.", plots.layers(result.layers))] if result else []),
            _figure("Reward of the search", "", plots.reward_curve(trials)),
            *([_figure("Fine-tuning", "Epoch 0, the student as these images chose it, is kept only if every epoch is surely worse. "
                       f"The teacher's line is its {score} in the quick evaluation.",
                       plots.finetuning(result.finetune, score, teacher))] if result else []),
        ],
        "found": tables.found(best, policy, names) if policy else [],
        "best": str(best.index),
        "best_head": ["Trial", "Reward", _capital(score), *(names[n].label for n in budgeted), *BEST_HEAD_END],
        "best_rows": [tables.trial_row(t, budgeted) for t in shown],
        "best_note": _shaded(result, bool(attempts)),
        "settings": tables.settings(run, result),
        "versions": [(name, text(value)) for name, value in versions.items()],
        "command": text(run["command"] or (result and result.command)),
        "further": f"It was begun with {begun} evaluations, and gone on with to {asked} by --resume." if asked != begun else "",
    }  # fmt: skip


def why(folder: RunFolder, best: Trial, names: Mapping[str, ResourceName]) -> dict[str, Any]:
    """What was decided of each part, beside what that costs alone and saves: `decisions` with the ends of their scales.

    Args:
        folder: The run folder.
        best: The trial of the student.
        names: Labels of resources.

    Raises:
        UserError: For a file of the folder that cannot be read.
    """
    parts, known = kept(folder, PARTS, Parts.from_json), kept(folder, "sensitivities.json", Sensitivities.from_json)
    measured = kept(folder, "problem.json", Measured.from_json)
    sizes = {group: len(order) for group, order in measured.ranking.orders.items()} if measured else {}
    told = {name for row in parts.rows for name in row.shares} if parts else set()
    resource = next((name for name in best.limits if name in told), "macs")
    found = decision_rows(best.plan, parts, known, sizes, resource)
    alone, whole = total(found), best.evaluation.kl
    return {
        "rows": found,
        "label": names[resource].label if resource in names else ResourceName.of(resource).label,
        "most_kl": max([v for r in found for v in (r.cut, r.paid) if v is not None], default=0.0),
        "most_saved": max([r.saves for r in found if r.saves is not None], default=0.0),
        "sum": "" if alone is None or whole is None else f"Each alone, these cuts cost {decimal(alone, 3)} nats in sum; the student "
        f"with all of them has {decimal(whole, 3)} before fine-tuning.",
    }  # fmt: skip


def headline(
    teacher: str, trials: Sequence[Trial], best: Trial, result: Result | None, names: Mapping[str, ResourceName]
) -> str:
    """One sentence with the outcome of the run."""
    if result:
        student, whole = result.student, result.teacher
        used = {n: ratio(student.usage.get(n), whole.usage.get(n)) for n in best.limits}
        missed = "" if result.feasible else " (over the budget)"
        values = metric(student.metric_test, 1), metric(whole.metric_test, 1)
        return f"{teacher}{_at(used, names)}{missed}: {values[0]} test {result.metric}, teacher {values[1]}"
    evaluation = best.evaluation
    used = {n: ratio(evaluation.usage[n], evaluation.teacher_usage[n]) for n in best.limits}
    value, whole_value = metric(evaluation.metric, 1), metric(evaluation.teacher_metric, 1)
    return (
        f"{teacher}{_at(used, names)}: {value} validation {next(iter(evaluation.metrics))} before fine-tuning, best of "
        f"{len(trials)} trial{'s' * (len(trials) != 1)}, teacher {whole_value}"
    )


def as_html(result: Result | None, trials: Trials, report: Path) -> str:
    """The outcome of a run for notebooks: teacher and student, or the best trials where no student was distilled."""
    if result:
        head, told = ["", "teacher", "student", "share or change", "budget"], f"Report: {report}"
        measured = f"Measured with {runtime}. " if (runtime := measured_with(result)) else ""
        return html_table(head, tables.comparison(result), measured + told)
    head, rows = Trials(trials.best_first()[:BEST]).chief()
    return html_table(head, rows, f"The best of {len(trials)} trials, before distillation. Report: {report}")


def measured_with(result: Result) -> str:
    """The runtime that resources were measured with; "" if none was."""
    return result.runtime if any(resource.measured for resource in result.resources.values()) else ""


def _at(used: Mapping[str, float | None], names: Mapping[str, ResourceName]) -> str:
    parts = [f"{100 * share:.3g}{SPACE}% of its {in_sentence(names[n].label)}" for n, share in used.items() if share is not None]
    return f" at {' and '.join(parts)}" if parts else ""


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _shaded(result: Result | None, guaranteed: bool) -> str:
    """What the shaded row of the best trials is."""
    if result is None:
        return "Shaded: the one with the highest reward that fits."
    if guaranteed:
        return "Shaded: the one that was chosen, for the smallest budget that holds."
    return (
        "Shaded: the one that was chosen. Of the ten best it does best on all validation images, of which the search sees half at "
        "most."
    )


def _figure(title: str, note: str, svg: str) -> dict[str, str]:
    return {"title": title, "note": note, "svg": Markup(svg)}


def _distilled(result: Result | None, resource: str) -> tuple[float, float] | None:
    """The share of the teacher's usage that the student has, and its validation metric after distillation."""
    if result is None or not (share := ratio(result.student.usage.get(resource), result.teacher.usage.get(resource))):
        return None
    return share, result.finetune["best_validation"]
