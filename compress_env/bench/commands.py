"""`compress-env bench ...`: measurements that anyone can repeat. Heavy modules are imported where they are used."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long.

    \b
    compress-env bench run --task digits-25 --agent ddpg --agent random --evaluations 100 --seeds 5 --out runs/bench
    """


@bench.command(short_help="Search with several agents on several tasks over seeds.")
@click.option(
    "--task", "tasks", multiple=True, default=("digits-25",), show_default=True, help="May be repeated; see --list."
)
@click.option(
    "--agent",
    "agents",
    multiple=True,
    default=("ddpg", "random"),
    show_default=True,
    metavar="AGENT",
    help='May be repeated; with settings of its own as in "ddpg imagined=0".',
)
@click.option("--evaluations", type=click.IntRange(1), default=200, show_default=True, help="Students a search.")
@click.option(
    "--seeds", type=click.IntRange(1), default=10, show_default=True, help="Searches of each agent on each task."
)
@click.option("--data", help="For tasks on CIFAR-10: imagefolder:DIR, or torchvision's if absent.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; one a core if absent.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of results and runs."
)
@click.option("--list", "listed", is_flag=True, is_eager=True, expose_value=False, callback=lambda *a: _list_tasks(*a),
              help="Show the tasks and stop.")  # fmt: skip
def run(tasks, agents, evaluations, seeds, data, jobs, out) -> None:
    """Search with every agent on every task, once a seed, at an equal number of evaluations; what is finished is skipped.

    \b
    compress-env bench run --task digits-25 --agent "ddpg imagined=0" --agent random --evaluations 100 --seeds 5 --out runs/bench
    compress-env bench report --out runs/bench
    """
    from compress_env.bench.run import run as play

    play(tasks, agents, range(seeds), evaluations, out, data=data, jobs=jobs)
    click.echo(f"next: compress-env bench report --out {shlex.quote(str(out))}")


def _list_tasks(context, _parameter, value) -> None:
    if value:
        from compress_env.bench.tasks import TASKS

        for name, task in TASKS.items():
            click.echo(f"{name:16} {task.about}")
        context.exit()


@bench.command(short_help="Tables and pictures of what bench run measured.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of `bench run`.")
@click.option(
    "--results", type=click.Path(path_type=Path), help="A results file elsewhere, such as one in benchmarks/."
)
def report(out, results) -> None:
    """Write report.md, a picture a task and report.html.

    \b
    compress-env bench report --out runs/bench
    """
    from compress_env.bench.report import write

    command = "compress-env " + shlex.join(sys.argv[1:])
    click.echo(write(results or out / "results.jsonl", out, command))
    click.echo(f"page: {out / 'report.html'}")


@bench.command(short_help="Distil what bench run found with fresh seeds, for test accuracy in the report.")
@click.option("--results", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Folder of `bench run`, or a results file.")  # fmt: skip
@click.option("--data", help="For tasks on CIFAR-10: imagefolder:DIR, or torchvision's if absent.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Searches of each agent whose winner is distilled.",
)
@click.option("--task", "tasks", multiple=True, help="Only this one; all if absent. May be repeated.")
@click.option("--agent", "agents", multiple=True, help="Only this one; all if absent. May be repeated.")
def redistil(results, data, epochs, seeds, tasks, agents) -> None:
    """Distil the best student of each agent's searches fully, each with a fresh seed, and measure it on test images.

    What is finished is kept beside the results and skipped; `bench report` then has it as a column.

    \b
    compress-env bench redistil --results runs/bench --epochs 30 --seeds 5
    compress-env bench report --out runs/bench
    """
    from compress_env.bench import redistil as measure

    path = results / "results.jsonl" if results.is_dir() else results
    measure.redistil(path, epochs, seeds, data=data, tasks=tasks, agents=agents)
    click.echo(measure.path_of(path))
    extra = "" if path.name == "results.jsonl" else f" --results {shlex.quote(str(path))}"
    click.echo(f"next: compress-env bench report --out {shlex.quote(str(path.parent))}{extra}")


@bench.command(short_help="Measured latency of students against their budget.")
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
    from compress_env.resources.runtimes import Setting

    settings = [Setting(runtime, latency_batch, latency_threads, device) for runtime in runtimes]
    shape = (3, input_side, input_side)
    click.echo(table(run(Path(out), teachers or TEACHERS, settings, budgets, random_policies, shape, channel_multiple)))


@bench.command(short_help="Decisions a second, where an episode's time goes, and what a candidate costs.")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--weights", help="Weights file of a teacher given by factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
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
        env = LayerRemovalEnv(teacher=teacher, weights=weights, data=data, progress=True)
    result = measure(env, seconds, seed)
    for line in table(result):
        click.echo(line)
    result["search"] = search_cost.search_cost(env, agent, evaluations, seed, progress=True)
    click.echo(f"\n{search_cost.line(result['search'])}")
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


@bench.command(short_help="Whether quick scores of students predict their accuracy after distillation.")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
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


@bench.command(short_help="Distillation losses against each other, at equal steps.")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
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


@bench.command(short_help="Our students beside those of torch-pruning at the same MACs, fine-tuned alike.")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--weights", help="Weights file of a teacher given by factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
@click.option(
    "--budget", metavar="macs=LIMIT", default="macs=0.5", show_default=True, help="Share of the MACs, or a number."
)
@click.option("--method", "methods", multiple=True,
              default=("magnitude-uniform", "magnitude-global", "taylor-global", "bn-scale-global"), show_default=True,
              help="Pruners of torch-pruning; also taylor-uniform and bn-scale-uniform. May be repeated.")  # fmt: skip
@click.option("--run", "runs", multiple=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder of a search whose best student takes part. May be repeated.")  # fmt: skip
@click.option("--finetune-epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option("--lr", type=click.FloatRange(0, min_open=True),
              help="Peak rate; that of full distillation if absent, which is low for few epochs.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Fine-tunings of each student.")
@click.option("--device", default="cpu", show_default=True, help="Torch device of the fine-tuning.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
def peers(teacher, weights, data, budget, methods, runs, finetune_epochs, lr, seeds, device, out) -> None:
    """Bring torch-pruning's pruners to the MACs of a budget, put the uniform student and those of searches beside them,
    fine-tune all with the same recipe, loss, data and seeds, and print a Markdown table.

    \b
    compress-env search --budget macs=0.5 --finetune-epochs 0 --out runs/a
    compress-env bench peers --budget macs=0.5 --run runs/a --finetune-epochs 20 --out runs/peers

    The default peak rate suits students that are refitted; those of torch-pruning start from less, and may do better in few
    epochs with a higher one. Interrupted, the same command goes on. OUT then has peers.jsonl and peers.md.
    """
    from compress_env.bench import peers as measure
    from compress_env.envs.layer_removal import LayerRemovalEnv

    name, _, value = budget.partition("=")
    limits = {name: value}
    measure.limit_of(limits, 1.0)  # refuse before the teacher is loaded
    env = LayerRemovalEnv(teacher=teacher, weights=weights, data=data, budget=limits, device=device, progress=True)
    limit = measure.limit_of(limits, env.meter.teacher["macs"])
    contestants = measure.contestants(env, limit, methods, runs, teacher, weights)
    text = measure.table(*measure.compare(env, contestants, limit, finetune_epochs, seeds, out, lr))
    command = "compress-env " + shlex.join(sys.argv[1:])
    (out / "peers.md").write_text(f"{text}\n\nMade by\n\n    {command}\n", encoding="utf-8")
    click.echo(f"{text}\n\n{out / 'peers.jsonl'}, {out / 'peers.md'}")


@bench.command(short_help="Saved policies at ten budgets, beside the uniform students and searches.")
@click.argument("files", type=click.Path(), nargs=-1, required=True, metavar="POLICY.onnx...")
@click.option("--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory.")
@click.option("--weights", help="Weights file of a teacher given by factory.")
@click.option("--data", help="As for search; the shipped teacher's own if absent.")
@click.option("--budget", "budgets", multiple=True, type=click.FloatRange(0, 1, min_open=True),
              help="Share of the MACs; ten from 0.2 to 0.8 if absent. May be repeated.")  # fmt: skip
@click.option("--agent", default="ddpg", show_default=True, help="Of the searches.")
@click.option(
    "--evaluations", type=click.IntRange(0), default=200, show_default=True, help="Of each search; 0: no searches."
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Searches at each budget.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
def policy(files, teacher, weights, data, budgets, agent, evaluations, seeds, out) -> None:
    """Let saved policies decide about a teacher at several budgets, without a search, and put their students beside the uniform ones
    and the best of a search at each budget. Of several policies, such as those of other seeds, the table has the mean.

    \b
    compress-env search --budget macs=0.2..0.8 --agent-option rehearsed=4000 --finetune-epochs 0 --out runs/all
    compress-env bench policy runs/all/policy.onnx --out runs/zero-shot
    """
    from compress_env.bench import zero_shot

    rows = zero_shot.compare(
        files,
        budgets or zero_shot.BUDGETS,
        agent,
        evaluations,
        range(seeds),
        out,
        teacher=teacher,
        weights=weights,
        data=data,
    )
    click.echo(zero_shot.table(rows))
