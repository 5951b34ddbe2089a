"""`python -m benchmarks.losses`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.spec import ProblemSpec, SearchSpec


@click.command(cls=Command)
@options.of(ProblemSpec, "teacher", "data")
@click.option("--plans", multiple=True, metavar="SHARE:PLANS", default=("0.5:3", "0.25:3"), show_default=True,
              help="Random plans at a share of the MACs. May be repeated.")  # fmt: skip
@click.option("--loss", "losses", multiple=True, help="Names of losses; all if absent. May be repeated.")
@click.option("--lr", "rates", multiple=True, type=options.Finite(0, min_open=True), default=(0.02, 0.05),
              show_default=True, help="Peak rates; each loss is judged at its best one. May be repeated.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True, help="Batches that each student sees.")
@options.of(SearchSpec, "seed")
@click.option("--out", type=options.Place(path_type=Path, dir_okay=False), required=True, metavar="FILE.jsonl",
              help="Results; continued if not complete.")  # fmt: skip
def main(
    plans: tuple[str, ...], losses: tuple[str, ...], rates: tuple[float, ...], steps: int, seed: int, out: Path, **problem: Any
) -> None:
    """Distil the same random plans with each loss, on the same images in the same order, and compare.

    \b
    python -m benchmarks.losses --steps 100 --out losses.jsonl
    python -m benchmarks.losses --teacher resnet20-cifar10 --data imagefolder:DIR --loss hinton --loss dkd --out losses20.jsonl
    """
    from benchmarks.fidelity.truths import parse_counts
    from benchmarks.losses.compare import compare, table
    from compress_env.problem import Problem

    counts = parse_counts(plans)
    built = Problem.build(ProblemSpec(**problem), progress=True)
    click.echo(table(compare(built, counts, losses, rates, steps, out, seed)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.losses")
