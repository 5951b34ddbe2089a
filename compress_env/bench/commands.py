"""`compress-env bench ...`: measurements that anyone can repeat. Heavy modules are imported where they are used."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long."""


TEACHER = click.option(
    "--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory."
)
DATA = click.option("--data", help="As for search; the shipped teacher's own if absent.")


@bench.command(short_help="Whether quick scores of students predict their accuracy after distillation.")
@TEACHER
@DATA
@click.option("--plans", multiple=True, metavar="SHARE:PLANS",
              help="Random plans at a share of the MACs. May be repeated; 0.5:40 and 0.25:40 if absent, "
              "or those of the file of truths.")  # fmt: skip
@click.option("--passes", type=click.IntRange(1), help="Passes over the training images to distil a plan; 1 if absent.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak rate; that of full distillation if absent.")
@click.option("--seed", type=int, help="Of the plans and of the training; 0 if absent.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
@click.option("--truths", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.jsonl",
              help="Distilled plans; OUT/truths.jsonl if absent. What it lacks is distilled.")  # fmt: skip
def fidelity(teacher, data, plans, passes, lr, seed, out, truths) -> None:
    """Distil random plans properly, score each with every evaluator, and say how well the scores predict the truth.

    \b
    compress-env bench fidelity --plans 0.5:100 --passes 60 --out runs/fidelity
    compress-env bench fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --lr 0.05 --out runs/fidelity20
    compress-env bench fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --out runs/again \\
        --truths benchmarks/fidelity-resnet20-cifar10.jsonl

    The last one scores the plans of the repository again, without distilling them. Interrupted, the same command goes on. OUT then
    has truths.jsonl (if not given), scores.jsonl, fidelity.md and fidelity.png.
    """
    from compress_env.bench import evaluators, fidelity_report
    from compress_env.bench import fidelity as measure
    from compress_env.envs.layer_removal import LayerRemovalEnv

    counts = measure.parse_counts(plans)
    env = LayerRemovalEnv(teacher=teacher, data=data, progress=True)
    settings, known = measure.truths(env, truths or out / "truths.jsonl", counts, passes=passes, lr=lr, seed=seed)
    scores = evaluators.score(env, known, out / "scores.jsonl")
    seconds = evaluators.distillation_seconds(env, known, settings)
    free = evaluators.training_free(env, settings["seed"])
    click.echo(fidelity_report.write(out, env.teacher.name, known, scores, seconds, free))
    click.echo(f"\n{out / 'fidelity.md'}, {out / 'fidelity.png'}")


@bench.command(short_help="Distillation losses against each other, at equal steps.")
@TEACHER
@DATA
@click.option("--plans", multiple=True, metavar="SHARE:PLANS", default=("0.5:3", "0.25:3"), show_default=True,
              help="Random plans at a share of the MACs. May be repeated.")  # fmt: skip
@click.option("--loss", "losses", multiple=True, help="Names of losses; all if absent. May be repeated.")
@click.option("--lr", "rates", multiple=True, type=click.FloatRange(0, min_open=True), default=(0.02, 0.05),
              show_default=True, help="Peak rates; each loss is judged at its best one. May be repeated.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True, help="Batches that each student sees.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.jsonl",
              help="Results; continued if not complete.")  # fmt: skip
def losses(teacher, data, plans, losses, rates, steps, seed, out) -> None:
    """Distil the same random plans with each loss, on the same images in the same order, and compare.

    \b
    compress-env bench losses --steps 100 --out losses.jsonl
    compress-env bench losses --teacher resnet20-cifar10 --data imagefolder:DIR --loss hinton --loss dkd --out losses20.jsonl
    """
    from compress_env.bench import losses as measure
    from compress_env.bench.fidelity import parse_counts
    from compress_env.distill.losses import LOSSES
    from compress_env.envs.layer_removal import LayerRemovalEnv

    counts = parse_counts(plans)
    env = LayerRemovalEnv(teacher=teacher, data=data, progress=True)
    rows = measure.compare(env, counts, losses or LOSSES.names(), rates, steps, out, seed)
    click.echo(measure.table(rows))
