"""`python -m benchmarks.speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.spec import EnvironmentSpec, ProblemSpec, SearchSpec


@click.command(cls=Command)
@options.of(ProblemSpec, "teacher", "weights", "data")
@click.option(
    "--seconds", type=options.Finite(0, min_open=True), default=5.0, show_default=True, help="For each measurement."
)
@options.of(SearchSpec, "agent", "evaluations", "seed", evaluations=300)
@click.option(
    "--out", type=options.Place(path_type=Path, dir_okay=False), metavar="FILE.json", help="Write the numbers, too."
)
def main(seconds: float, agent: str, evaluations: int, seed: int, out: Path | None, **problem: Any) -> None:
    """Measure decisions, episodes and candidates on this machine, beside a pruning library and training from random weights; a step
    of training in float32 and in bfloat16; and a whole search beside training the teacher.

    \b
    python -m benchmarks.speed
    python -m benchmarks.speed --teacher resnet20-cifar10 --data imagefolder:cifar10 --seconds 20 --out speed.json
    """
    from benchmarks.speed import search_cost
    from benchmarks.speed.measure import speed, table
    from benchmarks.speed.training import lines, training
    from compress_env.evaluator import Evaluator
    from compress_env.files import write_json
    from compress_env.objective import Objective
    from compress_env.problem import Problem

    spec = EnvironmentSpec(ProblemSpec(device="cpu", **problem))
    built = Problem.build(spec.problem, progress=True)
    evaluator = Evaluator(built, spec.evaluator)
    objective = Objective(spec, problem=built, evaluator=evaluator)
    result = speed(objective, evaluator, seconds, seed)
    for line in table(result):
        click.echo(line)
    result["training"] = training(built, seconds)
    click.echo("\n" + "\n".join(lines(result["training"])))
    result["search"] = search_cost.search_cost(objective, agent, evaluations, seed, progress=True)
    click.echo(f"\n{search_cost.line(result['search'])}")
    if out:
        write_json(out, result)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.speed")
