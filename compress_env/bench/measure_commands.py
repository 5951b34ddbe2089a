"""`compress-env bench latency|speed|fidelity|losses`: parts of this package, measured.

Heavy modules are imported where they are used.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from compress_env.cli.options import DATA, TEACHER, WEIGHTS


@click.command(short_help="Measured latency of students against their budget.")
@click.option("--teacher", "teachers", multiple=True, help="Name, module:factory or file.py:factory. May be repeated.")
@click.option("--runtime", "runtimes", multiple=True, type=click.Choice(["eager", "compile", "onnxruntime"]),
              default=("eager", "onnxruntime"), show_default=True, help="May be repeated.")  # fmt: skip
@click.option("--budget", "budgets", multiple=True, type=click.FloatRange(0, 1, min_open=True), default=(0.75, 0.5, 0.35),
              show_default=True, help="Share of the teacher's latency. May be repeated.")  # fmt: skip
@click.option(
    "--random-policies", type=click.IntRange(0), default=1, show_default=True, help="Beside the uniform policy."
)
@click.option("--input-side", type=click.IntRange(8), default=224, show_default=True,
              help="Pixels of images for teachers that are not shipped.")  # fmt: skip
@click.option(
    "--channel-multiple", type=click.IntRange(1), default=8, show_default=True, help="Widths are multiples of it."
)
@click.option("--latency-batch", type=click.IntRange(1), default=1, show_default=True, help="Inputs at once.")
@click.option("--latency-threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of a pass.")
@click.option("--device", default="cpu", show_default=True, help="Torch device that is measured.")
@click.option("--out", type=click.Path(dir_okay=False), default="latency.jsonl", show_default=True, help="JSON lines.")
def latency(teachers, runtimes, budgets, random_policies, input_side, channel_multiple, latency_batch, latency_threads, device,
            out) -> None:  # fmt: skip
    """Find students for shares of a teacher's latency, measure each beside its teacher once more, and print a Markdown table.

    No data and no accuracy is needed. Rows are written as they come; the same command goes on after an interruption.

    \b
    compress-env bench latency --out latency.jsonl
    compress-env bench latency --teacher net.py:make --runtime onnxruntime --latency-threads 2 --budget 0.5
    """
    from compress_env.bench.latency import TEACHERS, run, table
    from compress_env.resources.latency.runtimes import RuntimeConfig

    settings = [RuntimeConfig(runtime, latency_batch, latency_threads, device) for runtime in runtimes]
    shape = (3, input_side, input_side)
    click.echo(table(run(Path(out), teachers or TEACHERS, settings, budgets, random_policies, shape, channel_multiple)))


@click.command(short_help="Decisions a second, where an episode's time goes, and what a candidate costs.")
@TEACHER
@WEIGHTS
@DATA
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="For each measurement."
)
@click.option("--agent", default="ddpg", show_default=True, help="Of the search that is timed.")
@click.option("--evaluations", type=click.IntRange(1), default=300, show_default=True, help="Of that search.")
@click.option("--seed", default=0, show_default=True, help="Of budgets and actions.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.json", help="Write the numbers, too."
)
def speed(teacher, weights, data, seconds, agent, evaluations, seed, out) -> None:
    """Measure decisions, episodes and candidates on this machine, beside a pruning library and training from random weights; and a
    whole search beside training the teacher.

    \b
    compress-env bench speed
    compress-env bench speed --teacher resnet20-cifar10 --data imagefolder:cifar10 --seconds 20 --out speed.json
    """
    from compress_env.bench import search_cost
    from compress_env.bench.speed import speed as measure
    from compress_env.bench.speed import table
    from compress_env.envs.layer_removal import LayerRemovalEnv
    from compress_env.progress import announced

    with announced("loading teacher and data"):
        env = LayerRemovalEnv(teacher=teacher, weights=weights, data=data, device="cpu", progress=True)
    result = measure(env, seconds, seed)
    for line in table(result):
        click.echo(line)
    result["search"] = search_cost.search_cost(env, agent, evaluations, seed, progress=True)
    click.echo(f"\n{search_cost.line(result['search'])}")
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


@click.command(short_help="Whether quick scores of students predict their accuracy after distillation.")
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
    compress-env bench fidelity --teacher resnet20-cifar10 --data imagefolder:DIR --out runs/fidelity20
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
    sizes = evaluators.sizes(env, known)
    click.echo(fidelity_report.write(out, env.teacher.name, known, scores, sizes, seconds, free))
    click.echo(f"\n{out / 'fidelity.md'}, {out / 'fidelity.png'}")


@click.command(short_help="Distillation losses against each other, at equal steps.")
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
    from compress_env.envs.layer_removal import LayerRemovalEnv
    from compress_env.tasks.classification.losses import LOSSES

    counts = parse_counts(plans)
    env = LayerRemovalEnv(teacher=teacher, data=data, progress=True)
    rows = measure.compare(env, counts, losses or LOSSES.names(), rates, steps, out, seed)
    click.echo(measure.table(rows))
