"""Searches at several budgets, and their outcome on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from compress_env.cli.run import command_line
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec


def several(budget: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """The budgets that limits with commas stand for; None without commas. Raises UserError for several resources with them."""
    if not any(isinstance(limit, str) and "," in limit for limit in (budget or {}).values()):
        return None
    from compress_env.curve import budgets_of

    return budgets_of(budget or {})


def curve(
    environment: EnvironmentSpec, budgets: Sequence[Mapping[str, Any]], search: SearchSpec, out: str, finetune_epochs: int,
    max_accuracy_drop: float | None, *, loss: str | None = None, resume: bool = False, dry_run: bool = False, quiet: bool = False,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Search at each budget, and print a table of all students.

    Args:
        environment: The problem and the reward.
        budgets: As for `compress_env.curve.points_of`.
        search: The agent and how long it looks at each.
        out: The folder of the curve.
        finetune_epochs: Passes of each full distillation.
        max_accuracy_drop: Has to be None.
        loss: Of the full distillation.
        resume: Whether to go on with what is in `out`.
        dry_run: Whether to say what it would take, and stop.
        quiet: Whether to show nothing but the table.
        as_json: Whether to print it as JSON.

    Raises:
        UserError: For anything that cannot be used.
    """
    from compress_env import api
    from compress_env import curve as curves

    curves.check_curve(None, max_accuracy_drop, finetune_epochs)
    recipe = FinetuneSpec(finetune_epochs, loss=loss)
    api.check_finetuning(environment, recipe)
    if dry_run:
        click.echo(curves.dry_run(environment, budgets, search, out, recipe, resume=resume, progress=not quiet))
        return
    done = curves.run_curve(environment, budgets, search, out, recipe, resume=resume, command=command_line(), progress=not quiet)
    if as_json:
        click.echo(json.dumps(done.table.to_json(), indent=2))
        return
    click.echo(done.table.text())
    click.echo("tested once each, on examples that no search saw; shares are of the teacher")
    click.echo(f"report: {done.report()}")
