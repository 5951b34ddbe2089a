"""`compress-env bench ...`: measurements that anyone can repeat."""

from __future__ import annotations

import click

from compress_env.bench import compare_commands as compare
from compress_env.bench import measure_commands as measure


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long.

    \b
    compress-env bench run --task digits-25 --agent ddpg --agent random --evaluations 100 --seeds 5 --out runs/bench
    """


for _command in (
    compare.run, compare.report, compare.retrain, compare.peers, compare.policy,
    measure.latency, measure.speed, measure.fidelity, measure.losses,
):  # fmt: skip
    bench.add_command(_command)
