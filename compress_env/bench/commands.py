"""`compress-env bench ...`: measurements that anyone can repeat. Heavy modules are imported where they are used."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long."""


@bench.command(short_help="Whether a quick score predicts the accuracy after distillation.")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
@click.option(
    "--plans", multiple=True, metavar="SHARE:PLANS", default=("0.5:40", "0.25:40"), show_default=True,
    help="Random plans at a share of the MACs. May be repeated.",
)  # fmt: skip
@click.option("--passes", type=click.IntRange(1), default=1, show_default=True, help="Passes over the training images.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak rate; that of full distillation if absent.")
@click.option("--seed", default=0, show_default=True)
@click.option("--truths", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.jsonl",
              help="Distilled plans; made if absent, continued if not complete.")  # fmt: skip
def fidelity(teacher, data, plans, passes, lr, seed, truths) -> None:
    """Distil random plans properly and compare with what quick scores say of them.

    \b
    compress-env bench fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --truths resnet20.jsonl
    """
    from compress_env.bench import fidelity as measure
    from compress_env.envs.layer_removal import LayerRemovalEnv

    counts = measure.parse_counts(plans)
    env = LayerRemovalEnv(teacher=teacher, data=data, progress=True)
    measure.truths(env, counts, truths, passes=passes, lr=lr, seed=seed)
