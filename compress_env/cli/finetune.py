"""`compress-env finetune`."""

from __future__ import annotations

import click

from compress_env.cli.run import show


@click.command(short_help="Distil the best student of a run folder fully.")
@click.option("--out", type=click.Path(), required=True, help="Run folder of a search.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
def finetune(out: str, epochs: int) -> None:
    """Distil the best student of a run fully; an interrupted fine-tuning goes on from its last epoch.

    \b
    compress-env finetune --out runs/a --epochs 40
    """
    from compress_env.api import finish
    from compress_env.search.store import RunFolder

    show(finish(RunFolder(out), epochs))
