"""`compress-env bench ...`: measurements that anyone can repeat. Heavy modules are imported where they are used."""

from __future__ import annotations

import click


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long.

    \b
    compress-env bench COMMAND --help
    """
