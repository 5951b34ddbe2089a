"""A search for the smallest student that is as good as was asked for, and its outcome on the terminal."""

from __future__ import annotations

import click

from compress_env.cli.run import command_line, show
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec

NOTHING = 1
"""The exit code if no smaller student is good enough: the run went well, and that is its outcome."""


def guarantee(
    environment: EnvironmentSpec, search: SearchSpec, out: str, finetune_epochs: int, max_accuracy_drop: float, *,
    loss: str | None = None, resume: bool = False, dry_run: bool = False, quiet: bool = False, as_json: bool = False,
) -> None:  # fmt: skip
    """Search over a range of budgets, find the smallest student that loses so little, and print the outcome.

    Args:
        environment: The problem, with a range of one resource in its budget.
        search: The agent and how long it looks.
        out: The run folder.
        finetune_epochs: Passes of each full distillation.
        max_accuracy_drop: In points.
        loss: Of the full distillation.
        resume: Whether to go on with the run in `out`.
        dry_run: Whether to say what it would take, and stop.
        quiet: Whether to show nothing but the outcome.
        as_json: Whether to print it as JSON.

    Raises:
        UserError: For anything that cannot be used.
    """
    from compress_env import api
    from compress_env.guarantee import FRESH, NothingHolds, check

    check(max_accuracy_drop, environment, finetune_epochs)
    recipe = FinetuneSpec(finetune_epochs, loss=loss)
    api.check_finetuning(environment, recipe)
    if dry_run:
        click.echo(api.dry_run(environment, search, out, resume=resume, finetuning=recipe, progress=not quiet).text())
        click.echo(
            f"the bisection after the search judges {FRESH} more and distils one for each halving of the range, six times at most "
            "from 10 to 100 %"
        )
        return
    try:
        done = api.run_guaranteed(
            environment, search, out, max_accuracy_drop, recipe, resume=resume, command=command_line(), progress=not quiet
        )
    except NothingHolds as outcome:
        click.echo(str(outcome), err=True)
        raise click.exceptions.Exit(NOTHING) from None
    show(done, as_json)
    if as_json:
        return
    from compress_env.report.promise import sentences

    assert done.result.promise
    for label, text in sentences(done.result.promise, done.result.metric):
        click.echo(f"{label:6} {text}")
