"""`compress-env validate`."""

from __future__ import annotations

import json

import click

from compress_env.cli import options
from compress_env.cli.trust import trust_of, trusting


@click.command(short_help="Evaluate recorded trials again and compare.")
@trusting
@click.option("--out", type=options.Place(), required=True, help="Run folder of a search.")
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many trials, the best first.")
@options.quiet
@options.as_json("How many plans were judged, and what differs,")
def validate(out: str, count: int, trust: bool, quiet: bool, as_json: bool) -> None:
    """Build and evaluate the best recorded plans again; exit code 1 if one does not reproduce.

    Metrics, KL, usage, reward and its terms are compared, and whether the trials belong to this teacher, data and ranking.

    \b
    compress-env validate --out runs/a --count 20
    """
    from compress_env.api import objective_of
    from compress_env.search.store import RunFolder
    from compress_env.search.validate import differences

    folder = RunFolder(out)
    objective = objective_of(folder, not quiet, trust=trust_of([folder], trust))
    checked, wrong = differences(objective, folder.trials(), count)
    if as_json:
        click.echo(json.dumps({"plans": checked, "differ": wrong}, indent=2))
    else:
        for line in wrong:
            click.echo(line)
        click.echo(f"{checked} plans judged again, {len(wrong)} trials differ" if wrong else f"{checked} of {checked} plans reproduce")
    if wrong:
        raise click.exceptions.Exit(1)
