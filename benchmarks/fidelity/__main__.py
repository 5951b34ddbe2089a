"""`python -m benchmarks.fidelity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.errors import UserError
from compress_env.spec import SEEDS, ProblemSpec


@click.command(cls=Command)
@options.of(ProblemSpec, "teacher", "data")
@click.option("--plans", multiple=True, metavar="SHARE:PLANS",
              help="Random plans at a share of the MACs. May be repeated; 0.5:40 and 0.25:40 if absent, "
              "or those of the file of truths.")  # fmt: skip
@click.option("--passes", type=click.IntRange(1), help="Passes over the training images to distil a plan; 1 if absent.")
@click.option("--lr", type=options.Finite(0, min_open=True), help="Peak rate; that of full distillation if absent.")
@click.option("--upper-half", is_flag=True, help="Distil the better half, by score, of twice as many plans.")
@click.option("--seed", type=click.IntRange(0, SEEDS - 1), help="Of the plans and of the training; 0 if absent.")
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
@click.option("--truths", type=options.Place(path_type=Path, dir_okay=False), metavar="FILE.jsonl",
              help="Distilled plans; OUT/truths.jsonl if absent. Those that it lacks are distilled.")  # fmt: skip
def main(
    plans: tuple[str, ...], passes: int | None, lr: float | None, seed: int | None, upper_half: bool, out: Path, truths: Path | None,
    **problem: Any,
) -> None:
    """Distil random plans properly, score each with every evaluator, and say how well the scores predict the truth.

    \b
    python -m benchmarks.fidelity --plans 0.5:100 --passes 60 --out runs/fidelity
    python -m benchmarks.fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --out runs/fidelity20
    python -m benchmarks.fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --plans 0.5:30 --plans 0.25:30 --passes 10 \\
        --upper-half --out runs/fidelity-ten
    python -m benchmarks.fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --out runs/again \\
        --truths benchmarks/fidelity/resnet20-cifar10.jsonl

    The last one scores the plans of the repository again, without distilling them. Interrupted, the same command goes on. OUT then
    has truths.jsonl (if not given), scores.jsonl, fidelity.md and fidelity.png.
    """
    from benchmarks.fidelity import report, scores
    from benchmarks.fidelity import truths as measure
    from compress_env.problem import Problem

    counts = measure.parse_counts(plans)
    if counts and min(counts.values()) < 3:
        raise UserError("a correlation needs three plans at least at each share; give more, for example --plans 0.5:40")
    built = Problem.build(ProblemSpec(**problem), progress=True)
    path = truths or out / "truths.jsonl"
    settings, known = measure.truths(built, path, counts, passes=passes, lr=lr, seed=seed, upper_half=upper_half)
    found = scores.score(built, known, out / "scores.jsonl")
    seconds = scores.distillation_seconds(built, known, settings)
    free = scores.training_free(built, settings["seed"])
    sizes = scores.sizes(built, known)
    click.echo(report.write(out, built.teacher.name, known, found, sizes, seconds, free))
    click.echo(f"\n{out / 'fidelity.md'}, {out / 'fidelity.png'}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.fidelity")
