"""`compress-env finetune`."""

from __future__ import annotations

import click

from compress_env.cli import options
from compress_env.cli.run import show
from compress_env.cli.trust import trust_of, trusting


@click.command(short_help="Distil the best student of a run folder fully.")
@trusting
@click.option("--out", type=options.Place(), required=True, help="Run folder of a search.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
def finetune(out: str, epochs: int, trust: bool) -> None:
    """Distil the best student of a run fully; an interrupted fine-tuning goes on from its last epoch.

    \b
    compress-env finetune --out runs/a --epochs 40
    """
    from compress_env.api import finish
    from compress_env.search.store import RunFolder

    folder = RunFolder(out)
    show(finish(folder, epochs, trust=trust_of([folder], trust)))
