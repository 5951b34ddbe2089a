"""A search, with the full distillation of its best student, and its outcome on the terminal."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compress_env.errors import UserError
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec

if TYPE_CHECKING:
    from compress_env.api import Compressed

FINETUNE_EPOCHS = click.IntRange(0)
LOSS = "Of the full distillation: one of the task's losses, or module:function; the task's own choice if absent."


def run(
    environment: EnvironmentSpec, search: SearchSpec, out: str, finetune_epochs: int, *, loss: str | None = None, resume: bool = False,
    dry_run: bool = False, quiet: bool = False, as_json: bool = False,
) -> None:  # fmt: skip
    """Search, distil the best student fully unless that is for later, and print the outcome.

    Args:
        environment: The problem, budget and reward.
        search: The agent and how long it looks.
        out: The run folder.
        finetune_epochs: Passes of the full distillation; 0 for none.
        loss: Of the full distillation.
        resume: Whether to go on with the run in `out`.
        dry_run: Whether to say what it would take, and stop.
        quiet: Whether to show nothing but the outcome.
        as_json: Whether to print it as JSON.

    Raises:
        UserError: For anything that cannot be used.
    """
    from compress_env import api
    from compress_env.api import finish, run_search

    recipe = FinetuneSpec(max(1, finetune_epochs), loss=loss)
    api.check_finetuning(environment, recipe)
    planned = recipe if finetune_epochs else None
    if dry_run:
        click.echo(api.dry_run(environment, search, out, resume=resume, finetuning=planned, progress=not quiet).text())
        return
    progress = not quiet
    try:
        folder, objective = run_search(
            environment, search, out, resume=resume, command=command_line(), progress=progress, finetuning=planned
        )
    except KeyboardInterrupt:
        _report_again(out)
        raise
    if finetune_epochs:
        show(finish(folder, finetune_epochs, objective=objective, progress=progress, loss=loss), as_json)
        return
    from compress_env.report.page import write_report
    from compress_env.search.trial import best_trial, reason_of_none

    trials = folder.trials()
    best = best_trial(trials)
    if as_json:
        found = {"evaluations": len(trials), "best": best and best.to_json(), "report": str(write_report(folder.path))}
        click.echo(json.dumps(found, indent=2))
        return
    told = f"best reward {best.reward:.4f} in {len(trials)} evaluations" if best else reason_of_none(trials)
    click.echo(f"{told}; report: {write_report(folder.path)}")
    if best:
        click.echo(f"next: compress-env finetune --out {shlex.quote(out)}")


def _report_again(out: str) -> None:
    """Write the report of a run that was gone on with and interrupted, if there is one, which says nothing of the later trials."""
    if (Path(out) / "report.html").is_file():
        from compress_env.report.page import write_report

        with suppress(UserError):
            write_report(out)


def command_line() -> str:
    """What was typed, for the report: the command that makes the run again."""
    return "compress-env " + shlex.join(a for a in sys.argv[1:] if a != "--resume")


def show(done: Compressed, as_json: bool = False) -> None:
    """Print the teacher beside the student, and where the report is; or what result.json has."""
    from compress_env.resources.base import amount

    result = done.result
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
        return
    teacher, student, metric = result.teacher, result.student, result.metric
    rows = [("", "teacher", "student", "")]

    def compare(label: str, form: str, before: float, after: float) -> None:
        rows.append((label, form.format(before), form.format(after), f"{after / before:.1%}" if before else ""))

    compare(f"test {metric}", "{:.2%}", teacher.metric_test, student.metric_test)
    for name, resource in result.resources.items():
        unit = "" if resource.unit.lower() == resource.label.lower() else f", {resource.unit}"
        whole, used = teacher.usage[name], student.usage[name]
        rows.append((f"{resource.label}{unit}", amount(whole), amount(used), f"{used / whole:.1%}" if whole else ""))
    compare("file size, bytes", "{:,.0f}", teacher.file_bytes, student.file_bytes)
    for name, limit in result.budget.items():
        used, unit = student.usage[name], result.resources[name].unit
        rows.append((f"budget {name}", f"{amount(limit)} {unit}", amount(used), "met" if used <= limit else "NOT MET"))
    for a, b, c, d in rows:
        click.echo(f"{a:20} {b:>18} {c:>14} {d:>8}")
    if result.by_class:
        worst = min(result.by_class, key=lambda row: (row["student"], row["examples"]))
        click.echo(
            f"least right class: {worst['class']}, {worst['examples']} test examples: teacher {worst['teacher']:.1%}, student "
            f"{worst['student']:.1%}; result.json has all"
        )
    first, best = done.trials[0], next(t for t in done.trials if t.index == result.best_trial)
    click.echo(
        f"reward in the search: first student {first.reward:.3f}, this one {best.reward:.3f}, evaluation {best.index + 1} of "
        f"{len(done.trials)}"
    )
    final = result.final_policy
    click.echo(
        f"before fine-tuning, validation: best found {done.evaluation.metric:.2%}"
        + (f", final policy {final.metrics[metric]:.2%}" if final else "")
        + f", teacher {done.evaluation.teacher_metric:.2%}"
    )
    click.echo(f"measured with {result.runtime}")
    click.echo(f"report: {done.report()}")
