"""`compress-env bench ...`: measurements that anyone can repeat. Heavy modules are imported where they are used."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long.

    \b
    compress-env bench COMMAND --help
    """


@bench.command(short_help="Decisions a second, where an episode's time goes, and what a candidate costs.")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--weights", help="Weights file of a teacher given by factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="For each measurement."
)
@click.option("--seed", default=0, show_default=True, help="Of budgets and actions.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.json", help="Write the numbers, too."
)
def speed(teacher, weights, data, seconds, seed, out) -> None:
    """Measure decisions, episodes and candidates on this machine, beside a pruning library and training from random weights.

    \b
    compress-env bench speed
    compress-env bench speed --teacher resnet20-cifar10 --data imagefolder:cifar10 --seconds 20 --out speed.json
    """
    from compress_env.bench.speed import speed as measure
    from compress_env.bench.speed import table
    from compress_env.envs.layer_removal import LayerRemovalEnv
    from compress_env.progress import announced

    with announced("loading teacher and data"):
        env = LayerRemovalEnv(teacher=teacher, weights=weights, data=data, progress=True)
    result = measure(env, seconds, seed)
    for line in table(result):
        click.echo(line)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
