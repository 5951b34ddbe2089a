"""`compress-env trials`."""

from __future__ import annotations

import click

from compress_env.cli import options


@click.command(short_help="Every student that a search has judged, as a table.")
@click.argument("run", type=options.Place(), metavar="RUN")
@click.option("--csv", "form", flag_value="csv", help="All columns as CSV.")
@click.option("--json", "form", flag_value="json", help="All columns as a JSON list, a trial an entry.")
@click.option("--latex", "form", flag_value="latex", help="The chief columns as a LaTeX tabular, with the rules of booktabs.")
@click.option("--best", type=click.IntRange(1), metavar="N", help="Only the N best, the best first, each plan once.")
def trials(run: str, form: str | None, best: int | None) -> None:
    """Print the trials of the run folder RUN: number, reward, metrics before the full distillation, KL to the teacher, shares of the
    limited resources, and how many blocks are removed. CSV and JSON have all there is: usage, shares and limits of every resource, the
    teacher's metrics, seconds and the plan. From Python: compress(...).trials.to_dataframe().

    \b
    compress-env trials runs/a --best 10
    compress-env trials runs/a --csv > trials.csv
    compress-env trials runs/a --best 5 --latex > table.tex
    """
    from compress_env.report import trials as tables
    from compress_env.search.store import RunFolder

    folder = RunFolder(run)
    folder.recorded()  # which is no run's without
    found = folder.trials()
    chosen = found if best is None else found.best_first()[:best]
    write = {"csv": tables.as_csv, "json": tables.as_json, "latex": tables.as_latex, None: tables.as_text}[form]
    click.echo(write(type(found)(chosen)))
