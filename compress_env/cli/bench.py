"""`compress-env bench run|report|policy`: agents beside each other."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.spec import ProblemSpec, SearchSpec


@click.group(short_help="Agents compared, in measurements that anyone can repeat.")
def bench() -> None:
    """Agents compared, in measurements that anyone can repeat, each one command, resumable where it takes long. The repository has
    further experiments in benchmarks/.

    \b
    compress-env bench run --scenario digits-25 --agent ddpg --agent random --evaluations 100 --seeds 5 --out runs/bench
    """


@bench.command("run", short_help="Search with several agents in several scenarios over seeds.")
@click.option(
    "--scenario", "scenarios", multiple=True, default=("digits-25",), show_default=True, help="May be repeated; see --list."
)
@click.option(
    "--agent", "agents", multiple=True, default=("model", "random"), show_default=True, metavar="AGENT",
    help='May be repeated; with settings of its own as in "ddpg shaping=false".',
)  # fmt: skip
@options.of(SearchSpec, "evaluations", evaluations=200)
@click.option(
    "--seeds", type=click.IntRange(1), default=10, show_default=True, help="Searches of each agent in each scenario."
)
@click.option("--data", help="For scenarios on CIFAR-10: imagefolder:DIR, or torchvision's if absent.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; one a core if absent.")
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), help="Folder of results and runs.  [required]")
@click.option("--list", "listed", is_flag=True, help="Show the scenarios and stop.")
@options.quiet
@options.as_json("With --list, the scenarios")
@click.pass_context
def run(
    context: click.Context, scenarios: tuple[str, ...], agents: tuple[str, ...], evaluations: int, seeds: int, data: str | None,
    jobs: int | None, out: Path | None, listed: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Search with every agent in every scenario, once a seed, at an equal number of evaluations; what is finished is skipped.

    \b
    compress-env bench run --scenario digits-25 --agent "ddpg shaping=false" --agent random --evaluations 100 --out runs/bench
    compress-env bench report --out runs/bench
    """
    if listed:
        from compress_env.bench.scenarios import SCENARIOS

        found = {name: scenario.about for name, scenario in SCENARIOS.items()}
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(f"{name:16} {about}" for name, about in found.items()))
        return
    if as_json:
        raise click.UsageError("--json goes with --list here; bench report --json has what was measured")
    if out is None:
        raise _without_out(context)
    from compress_env.bench.run import run as play

    play(scenarios, agents, range(seeds), evaluations, out, data=data, jobs=jobs, progress=not quiet)
    click.echo(f"next: compress-env bench report --out {shlex.quote(str(out))}")


@bench.command("report", short_help="Tables and pictures of what bench run measured.")
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), required=True, help="Folder of `bench run`.")
@click.option(
    "--results", type=options.Place(path_type=Path), help="A results file elsewhere, such as one in benchmarks/."
)
@options.as_json("Every compared search, by scenario and agent,")
def report(out: Path, results: Path | None, as_json: bool) -> None:
    """Write report.md, a picture a scenario and report.html.

    \b
    compress-env bench report --out runs/bench
    """
    from compress_env.bench.report import write

    command = "compress-env " + shlex.join(sys.argv[1:])
    file = results or out / "results.jsonl"
    text = write(file, out, command)
    if as_json:
        from compress_env.bench.run import load

        found = {scenario: {agent: [asdict(r) for r in runs] for agent, runs in own.items()} for scenario, own in load(file).items()}
        click.echo(json.dumps(found))
        return
    click.echo(text)
    click.echo(f"page: {out / 'report.html'}")


def _without_out(context: click.Context) -> click.MissingParameter:
    """The error of a command that needs --out, unless it is only to show something."""
    return click.MissingParameter(ctx=context, param=next(p for p in context.command.params if p.name == "out"))


@bench.command("policy", short_help="Uniform students, allocations, saved policies and searches at ten budgets.")
@click.argument("files", type=options.Place(), nargs=-1, metavar="[POLICY.onnx...]")
@options.of(ProblemSpec, "teacher", "weights", "data")
@click.option("--budget", "budgets", multiple=True, type=options.Finite(0, 1, min_open=True),
              help="Share of the MACs; ten from 0.2 to 0.8 if absent. May be repeated.")  # fmt: skip
@click.option("--agent", default="model", show_default=True, help="Of the searches.")
@click.option(
    "--evaluations", type=click.IntRange(0), default=200, show_default=True, help="Of each search; 0: no searches."
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Searches at each budget.")
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), help="Folder for the results.  [required]")
@click.option("--show", type=options.Place(path_type=Path, file_okay=False), metavar="DIR",
              help="Print tables of all results in DIR, draw DIR/zero-shot.png, and stop.")  # fmt: skip
@options.quiet
@options.as_json("A list, a student an entry, with --show by the name of each table,")
@click.pass_context
def policy(
    context: click.Context, files: tuple[str, ...], budgets: tuple[float, ...], agent: str, evaluations: int, seeds: int,
    out: Path | None, show: Path | None, quiet: bool, as_json: bool, **problem: Any,
) -> None:  # fmt: skip
    """At several budgets, put the uniform student, the allocation, the plan that a saved policy decides on, the best of ten that it
    proposes, and the best of a search beside each other. Of several policies, such as those of other seeds, the table has the mean.

    \b
    compress-env search --budget macs=0.2..0.8 --evaluations 200 --finetune-epochs 0 --out runs/all
    compress-env policy learn runs/all --out policy.onnx
    compress-env bench policy policy.onnx --out runs/zero-shot
    """
    from compress_env.bench import zero_shot

    if show:
        of = zero_shot.load(show)
        zero_shot.picture(of, show / "zero-shot.png")
        listed = {name: [asdict(row) for row in rows] for name, rows in of.items()}
        click.echo(json.dumps(listed, indent=2) if as_json else zero_shot.report(of))
        return
    if out is None:
        raise _without_out(context)
    chosen = budgets or zero_shot.BUDGETS
    rows = zero_shot.compare(files, ProblemSpec(**problem), chosen, agent, evaluations, range(seeds), out, progress=not quiet)
    click.echo(json.dumps([asdict(row) for row in rows], indent=2) if as_json else zero_shot.table(rows))
    zero_shot.picture({problem["teacher"]: rows}, out / "zero-shot.png")
    click.echo(f"\n{out / 'rows.jsonl'}, {out / 'zero-shot.png'}", err=as_json)
