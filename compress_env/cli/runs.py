"""`compress-env runs`."""

from __future__ import annotations

import json

import click

from compress_env.cli import options


@click.command(short_help="What runs there are, how far each is, and its best student so far.")
@click.argument("folders", nargs=-1, type=options.Place(), metavar="[FOLDER...]")
@options.as_json("A list, a run an entry,")
def runs(folders: tuple[str, ...], as_json: bool) -> None:
    """List the runs in folders and below (runs/ if none is given): agent, teacher, budget, evaluations, best student and state.

    A run is running; interrupted (go on with compress-env search --resume); complete, when its search is; finished, when its best
    student is distilled; or damaged, with the reason. The metric is that of the search, on validation examples before the full
    distillation; the age is the time since something was written. Files are only read: a run that goes on is not disturbed.

    \b
    compress-env runs
    compress-env runs runs/monday runs/tuesday
    compress-env runs --json | jq '.[] | select(.state == "interrupted") | .path'
    """
    from compress_env.report.runs import find_runs, text

    found = find_runs(folders or ("runs",), progress=True)
    if as_json:
        click.echo(json.dumps([run.to_json() for run in found], indent=2))
    elif found:
        click.echo(text(found))
    else:
        click.echo(f"no runs in {', '.join(folders or ('runs',))}; compress-env search makes one")
