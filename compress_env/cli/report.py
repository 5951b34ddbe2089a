"""`compress-env report`."""

from __future__ import annotations

from pathlib import Path

import click

from compress_env.cli import options


@click.command(short_help="Write report.html of a run folder again.")
@click.option("--out", type=options.Place(path_type=Path), required=True, help="Run folder of a search.")
def report(out: Path) -> None:
    """Write report.html from what is in a run folder, also of a search that is still running, which is told.

    \b
    compress-env report --out runs/a
    """
    from compress_env.report.page import still_going, write_report

    click.echo(write_report(out))
    if going := still_going(out):
        click.echo(going, err=True)
