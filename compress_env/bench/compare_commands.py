"""`compress-env bench run|report|retrain|peers|policy`: what agents find, beside each other and other tools.

Heavy modules are imported where they are used.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from compress_env.cli.options import DATA, TEACHER, WEIGHTS


@click.command(short_help="Search with several agents on several tasks over seeds.")
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
        from compress_env.bench.scenarios import TASKS

        for name, task in TASKS.items():
            click.echo(f"{name:16} {task.about}")
        context.exit()


@click.command(short_help="Tables and pictures of what bench run measured.")
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


@click.command(short_help="Distil what bench run found with fresh seeds, for test accuracy in the report.")
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
def retrain(results, data, epochs, seeds, tasks, agents) -> None:
    """Distil the best student of each agent's searches fully, each with a fresh seed, and measure it on test images.

    What is finished is kept beside the results and skipped; `bench report` then has it as a column.

    \b
    compress-env bench retrain --results runs/bench --epochs 30 --seeds 5
    compress-env bench report --out runs/bench
    """
    from compress_env.bench import retrain as measure

    path = results / "results.jsonl" if results.is_dir() else results
    measure.retrain(path, epochs, seeds, data=data, tasks=tasks, agents=agents)
    click.echo(measure.path_of(path))
    extra = "" if path.name == "results.jsonl" else f" --results {shlex.quote(str(path))}"
    click.echo(f"next: compress-env bench report --out {shlex.quote(str(path.parent))}{extra}")


@click.command(short_help="Our students beside those of torch-pruning at the same MACs, fine-tuned alike.")
@TEACHER
@WEIGHTS
@DATA
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
@click.option("--device", default="auto", show_default=True, help="Torch device of the fine-tuning.")
@click.option("--show", type=click.Path(path_type=Path, dir_okay=False), is_eager=True, expose_value=False,
              metavar="FILE.jsonl", callback=lambda *a: _show_peers(*a), help="Print a table of results and stop.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
def peers(teacher, weights, data, budget, methods, runs, finetune_epochs, lr, seeds, device, out) -> None:
    """Bring torch-pruning's pruners to the MACs of a budget, put the uniform student and those of searches beside them,
    fine-tune all with the same recipe, loss, data and seeds, and print a Markdown table.

    \b
    compress-env search --budget macs=0.5 --finetune-epochs 0 --out runs/a
    compress-env bench peers --budget macs=0.5 --run runs/a --finetune-epochs 20 --out runs/peers
    compress-env bench peers --show benchmarks/peers/resnet20-50.jsonl

    The default peak rate suits students that are refitted; those of torch-pruning start from less, and may do better in few
    epochs with a higher one. Interrupted, the same command goes on. OUT then has peers.jsonl and peers.md.
    """
    from compress_env.bench import peers as measure
    from compress_env.envs.layer_removal import LayerRemovalEnv

    name, _, value = budget.partition("=")
    limits = {name: value}
    measure.limit_of(limits, 1.0)  # refuse before the teacher is loaded
    env = LayerRemovalEnv(teacher=teacher, weights=weights, data=data, budget=limits, device=device, progress=True)
    limit = measure.limit_of(limits, env.cost_model.teacher["macs"])
    contestants = measure.contestants(env, limit, methods, runs, teacher, weights)
    text = measure.table(*measure.compare(env, contestants, limit, finetune_epochs, seeds, out, lr))
    command = "compress-env " + shlex.join(sys.argv[1:])
    (out / "peers.md").write_text(f"{text}\n\nMade by\n\n    {command}\n", encoding="utf-8")
    click.echo(f"{text}\n\n{out / 'peers.jsonl'}, {out / 'peers.md'}")


def _show_peers(context, _parameter, value) -> None:
    if value:
        from compress_env.bench import peers as measure
        from compress_env.errors import UserError
        from compress_env.files import JsonLines

        results = JsonLines(value, measure.Row, header=True)
        settings, rows = results.settings, results.read()
        if not rows:
            raise UserError(
                f"there are no results in {value}; `compress-env bench peers --out DIR` makes DIR/peers.jsonl"
            )
        click.echo(measure.table(settings, rows))
        context.exit()


def _show_policies(context, _parameter, value) -> None:
    if value:
        from compress_env.bench import zero_shot

        click.echo(zero_shot.report(value))
        context.exit()


@click.command(short_help="Saved policies at ten budgets, beside the uniform students and searches.")
@click.argument("files", type=click.Path(), nargs=-1, required=True, metavar="POLICY.onnx...")
@TEACHER
@WEIGHTS
@DATA
@click.option("--budget", "budgets", multiple=True, type=click.FloatRange(0, 1, min_open=True),
              help="Share of the MACs; ten from 0.2 to 0.8 if absent. May be repeated.")  # fmt: skip
@click.option("--agent", default="ddpg", show_default=True, help="Of the searches.")
@click.option(
    "--evaluations", type=click.IntRange(0), default=200, show_default=True, help="Of each search; 0: no searches."
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Searches at each budget.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
@click.option("--show", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", is_eager=True, expose_value=False,
              callback=_show_policies, help="Print tables of all results in DIR, draw DIR/zero-shot.png, and stop.")  # fmt: skip
def policy(files, teacher, weights, data, budgets, agent, evaluations, seeds, out) -> None:
    """Let saved policies decide about a teacher at several budgets, without a search, and put their students beside the uniform ones
    and the best of a search at each budget. Of several policies, such as those of other seeds, the table has the mean.

    \b
    compress-env search --budget macs=0.2..0.8 --evaluations 200 --finetune-epochs 0 --out runs/all
    compress-env policy learn runs/all --out policy.onnx
    compress-env bench policy policy.onnx --out runs/zero-shot
    """
    from compress_env.bench import zero_shot

    rows = zero_shot.compare(
        files, budgets or zero_shot.BUDGETS, agent, evaluations, range(seeds), out, teacher=teacher, weights=weights, data=data
    )  # fmt: skip
    click.echo(zero_shot.table(rows))
    zero_shot.picture({teacher: rows}, out / "zero-shot.png")
    click.echo(f"\n{out / 'rows.jsonl'}, {out / 'zero-shot.png'}")
