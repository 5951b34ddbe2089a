"""The report of a run: one HTML page without scripts or anything from outside, from the files in the run folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress_env.envs.render import quantity
from compress_env.errors import UserError
from compress_env.report import plots

DASH = "–"
NOT_A_TRIAL = "is not a trial; restore the file, or run the search again into a new folder"
RESOURCES = {  # resource: key in result.json, what tables call it, what sentences call it, unit
    "params": ("params", "Parameters", "parameters", ""),
    "macs": ("macs", "MACs", "MACs", ""),
    "latency": ("latency_ms", "Latency", "latency", "ms"),
    "memory": ("memory_bytes", "Peak memory", "peak memory", "bytes"),
}
BEST = 10  # trials in the table
BEST_HEAD_END = ("Fits", "Removed", "Narrowed")
ROW_KEYS = {"name", "kind", "before", "after", "status", "macs_before", "macs_after"}


def write_report(folder: Path) -> Path:
    """Writes `report.html` into the run folder and returns its path.

    Without `result.json` the page shows the search alone and says how to go on. Raises UserError if there is no trial.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"report: there is no run folder {folder}; make one with `compress-env search --out {folder}`")
    trials = read_trials(folder / "trials.jsonl")
    run, result = _read(folder / "run.json") or {}, _read(folder / "result.json")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("page.html.j2").render(content(run, trials, result, folder))
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def read_trials(path: Path) -> list[dict]:
    """The trials in a file of JSON lines, at least one; a torn last line (an interrupted run) is left out."""
    if not path.is_file():
        raise UserError(f"report: there is no {path}; run `compress-env search --out {path.parent}`")
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    trials = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            trial = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"report: line {number} of {path} {NOT_A_TRIAL} ({error})") from None
        if not isinstance(trial, dict):
            raise UserError(f"report: line {number} of {path} {NOT_A_TRIAL}")
        trials.append(trial)
    if not trials:
        raise UserError(f"report: {path} holds no trial yet; let `compress-env search` finish at least one")
    return trials


def content(run: Mapping, trials: list[dict], result: Mapping | None, folder: Path) -> dict[str, Any]:
    """What the template needs, as text, tables (lists of rows of text) and inline SVG."""
    done = result or {}
    best = best_trial(trials, done.get("best_trial"))
    outcome = best.get("outcome") or {}
    budgeted = list(done.get("budget") or outcome.get("budget") or run.get("budget") or {})
    rows = [row for row in done.get("layers") or [] if ROW_KEYS <= row.keys()]
    history = get(done, "finetune", "history") or []
    accuracy = outcome.get("teacher_accuracy")
    versions = (run.get("versions") or {}) | (done.get("versions") or {})
    figures = [
        ("Layers", "Outline: the teacher; filled: the student.", plots.layers(rows) if rows else ""),
        ("Reward of the search", "", plots.reward_curve(trials)),
        *(
            (f"Accuracy against {RESOURCES.get(name, (0, 0, name))[2]}",
             "Accuracy of the quick evaluation, before fine-tuning. No trial beats those on the front in both.",
             plots.plane(trials, name, best, accuracy))
            for name in budgeted
        ),
        ("Fine-tuning", "The teacher's line is its accuracy in the quick evaluation.",
         plots.finetuning(history, accuracy) if history else ""),
    ]  # fmt: skip
    return {
        "teacher": text(run.get("teacher")),
        "headline": headline(run, trials, best, result, budgeted),
        "go_on": "" if result else f"compress-env finetune --out {shlex.quote(str(folder))}",
        "comparison": comparison(done, budgeted) if result else [],
        "figures": [(title, note, Markup(svg)) for title, note, svg in figures if svg],
        "found": found(best, done.get("final_policy"), budgeted),
        "best_head": ["Trial", "Reward", "Accuracy", *(f"{_short(n)} / teacher" for n in budgeted), *BEST_HEAD_END],
        "best_rows": [trial_row(t, budgeted) for t in ranked(trials)[:BEST]],
        "settings": settings(run, done),
        "versions": [(name, text(value)) for name, value in versions.items()],
        "command": text(run.get("command") or done.get("command")),
    }


def best_trial(trials: list[dict], index: int | None = None) -> dict:
    """The trial with this index, otherwise the one with the highest reward among those within the budget."""
    return next((t for t in trials if index is not None and t.get("index") == index), None) or ranked(trials)[0]


def ranked(trials: list[dict]) -> list[dict]:
    """Best first: those within the budget before the others, then by reward. Repetitions of a plan are left out."""
    first = [t for t in trials if not t.get("repeated")] or trials
    return sorted(first, key=lambda t: (not t.get("feasible"), -_finite(t.get("reward"), -math.inf)))


def headline(run: Mapping, trials: list, best: Mapping, result: Mapping | None, budgeted: list[str]) -> str:
    """One sentence with the outcome of the run."""
    name = text(run.get("teacher"))
    if result:
        student, teacher = result.get("student") or {}, result.get("teacher") or {}
        keys = [(n, RESOURCES[n][0]) for n in budgeted if n in RESOURCES]
        used = [(n, _ratio(student.get(key), teacher.get(key))) for n, key in keys]
        missed = "" if result.get("feasible", True) else " (over the budget)"
        accuracies = (percent(side.get("accuracy_test"), 1) for side in (student, teacher))
        return "{}{}{}: {} test accuracy, teacher {}".format(name, _at(used), missed, *accuracies)
    outcome = best.get("outcome") or {}
    used = [(n, _ratio(get(outcome, "usage", n), get(outcome, "teacher_usage", n))) for n in budgeted]
    return (
        f"{name}{_at(used)}: {percent(outcome.get('accuracy'), 1)} validation accuracy before fine-tuning, best of "
        f"{len(trials)} trial{'s' * (len(trials) != 1)}, teacher {percent(outcome.get('teacher_accuracy'), 1)}"
    )


def comparison(result: Mapping, budgeted: list[str]) -> list[list[str]]:
    """Rows of the table teacher and student: what, teacher, student, student's share, limit and whether it is met."""
    teacher, student, budget = (result.get(k) or {} for k in ("teacher", "student", "budget"))
    before, after = teacher.get("accuracy_test"), student.get("accuracy_test")
    change = f"{100 * (after - before):+.2f} points".replace("-", "−") if _is(before) and _is(after) else DASH
    rows = [["Test accuracy", percent(before), percent(after), change, ""]]
    kinds = RESOURCES | {"": ("file_bytes", "File size", "", "bytes")}
    for name, (key, label, _, unit) in kinds.items():
        used, limit = student.get(key), budget.get(name)
        verdict = ""
        if name in budgeted:
            met = DASH if not (_is(used) and _is(limit)) else "yes" if used <= limit else "no"
            verdict = f"{met}, limit {quantity(limit, unit)}"
        if name == "latency" and (setting := get(result, "latency", "label")):
            label = f"{label}, {setting}"
        share = percent(_ratio(used, teacher.get(key)), 1)
        rows.append([label, quantity(teacher.get(key), unit), quantity(used, unit), share, verdict])
    return rows


def found(best: Mapping, policy: Mapping | None, budgeted: list[str]) -> list[list[str]]:
    """Rows of the table best found and final policy: what, best found, final policy."""
    outcome, policy = best.get("outcome") or {}, policy or {}
    rows = [
        ["Trial", text(best.get("index")), DASH],
        ["Reward", decimal(best.get("reward")), decimal(policy.get("reward"))],
        ["Validation accuracy", percent(outcome.get("accuracy")), percent(policy.get("accuracy"))],
    ]
    for name in budgeted:
        unit = RESOURCES[name][3] if name in RESOURCES else ""
        used, whole = get(outcome, "usage", name), get(outcome, "teacher_usage", name)
        both = (used, get(policy, "usage", name))
        rows.append(
            [_short(name), *(f"{quantity(u, unit)} ({percent(_ratio(u, whole), 1)})" if _is(u) else DASH for u in both)]
        )
    return rows


def trial_row(trial: Mapping, budgeted: list[str]) -> list[str]:
    outcome, plan = trial.get("outcome") or {}, trial.get("plan") or {}
    shares = (_ratio(get(outcome, "usage", n), get(outcome, "teacher_usage", n)) for n in budgeted)
    return [
        text(trial.get("index")), decimal(trial.get("reward")), percent(outcome.get("accuracy")),
        *(percent(share, 1) for share in shares), {True: "yes", False: "no"}.get(trial.get("feasible"), DASH),
        ", ".join(plan.get("removed") or []) or "nothing", f"{len(plan.get('widths') or {})} groups",
    ]  # fmt: skip


def settings(run: Mapping, result: Mapping) -> list[tuple[str, str]]:
    """Everything else in run.json, nested settings with dotted names, and what the run took."""
    rows = [pair for k, v in run.items() if k not in ("versions", "command") for pair in _flat(k, v)]
    if "seconds" in result:
        rows.append(("time of the search", f"{decimal(result['seconds'], 1)} s"))
    if (epochs := get(result, "finetune", "epochs")) is not None:
        rows.append(("fine-tuning epochs", text(epochs)))
    return rows


def get(data: Mapping, *keys: str) -> Any:
    """The value at nested keys, or None if one of them is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def text(value: Any) -> str:
    if value is None or value == "":
        return DASH
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def percent(value: Any, digits: int = 2) -> str:
    """A share as "89.70 %", with a space that does not break."""
    return f"{100 * value:.{digits}f}\u00a0%" if _is(value) else DASH


def decimal(value: Any, digits: int = 4) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if _is(value) else DASH


def _at(used: list[tuple[str, float | None]]) -> str:
    words = {n: RESOURCES[n][2] if n in RESOURCES else n for n, _ in used}
    parts = [f"{100 * share:.3g}\u00a0% of its {words[n]}" for n, share in used if share is not None]
    return f" at {' and '.join(parts)}" if parts else ""


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, text(value)


def _short(resource: str) -> str:
    return RESOURCES[resource][1] if resource in RESOURCES else resource


def _ratio(part: Any, whole: Any) -> float | None:
    return part / whole if _is(part) and _is(whole) and whole else None


def _is(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _finite(value: Any, otherwise: float) -> float:
    return value if _is(value) else otherwise


def _read(path: Path) -> dict | None:
    """The object in a JSON file, or None if there is no such file. Raises UserError if it holds something else."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"report: cannot read {path}: {error}; delete it or restore it") from None
    if not isinstance(data, dict):
        raise UserError(f"report: {path} does not hold a JSON object; delete it or restore it")
    return data
