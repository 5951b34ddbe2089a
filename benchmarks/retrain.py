"""Winners of `compress-env bench run`, distilled fully with fresh seeds and tested on images that no search has seen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from tqdm.auto import tqdm

from benchmarks.trained import train
from compress_env.bench.retrained import FRESH, Retrained, path_of, records
from compress_env.bench.run import load, objective
from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.distill.train import Diverged
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.own_code import check_trust
from compress_env.spec import FinetuneSpec
from compress_env.surgery.plan import Plan


def retrain(
    results: Path, epochs: int, seeds: int, *, data: str | None = None, scenarios: Sequence[str] = (),
    agents: Sequence[str] = (), progress: bool = True,
) -> list[Retrained]:  # fmt: skip
    """Distil the best student of the first searches of each agent in each scenario, each with a seed of its own.

    They are appended to `path_of(results)`; those that are there are not made again.

    Args:
        results: A results file of `bench run`.
        epochs: Passes over the training split.
        seeds: How many searches of each agent take part.
        data: For scenarios on CIFAR-10.
        scenarios: Only these, all if empty.
        agents: Only these, all if empty.
        progress: Whether to show how far it is.

    Returns:
        Everything that the file has.

    Raises:
        UserError: If the file was made with another number of epochs, or a name is not in the results.
    """
    table = load(results)
    for kind, given, names in (
        ("scenario", scenarios, list(table)), ("agent", agents, sorted({a for own in table.values() for a in own}))
    ):  # fmt: skip
        if missing := [name for name in given if name not in names]:
            raise UserError(f"there is no {kind} {missing[0]!r} in {results}; it has {', '.join(names)}")
    file = records(results)
    file.repair()
    known = file.read()
    if other := {r.epochs for r in known} - {epochs}:
        raise UserError(f"{file.path} was begun with {other.pop()} epochs, not {epochs}; move it away to begin anew")
    done = {(r.scenario, r.plan, r.seed) for r in known}
    wanted = {
        (scenario, run.plan, FRESH + run.seed)
        for scenario in scenarios or table
        for agent, runs in table[scenario].items()
        if not agents or agent in agents
        for run in runs[:seeds]
        if run.plan  # a search that met no budget has no winner
    }
    check_trust({"scenario": sorted({key[0] for key in wanted})}, scenarios, results)
    todo = sorted(wanted - done, key=lambda key: (list(table).index(key[0]), key[2], key[1]))
    with tqdm(
        total=len(wanted), initial=len(wanted & done), desc="winners", unit="student", disable=not progress
    ) as bar:
        for scenario in dict.fromkeys(key[0] for key in todo):
            bar.set_postfix_str(scenario)
            played = objective(scenario, data)
            problem, evaluator = played.problem, played.evaluator
            if not isinstance(evaluator, Evaluator):
                bar.write(f"{scenario} is left out: the metric of its students is a formula")
                continue
            how = FinetuneSpec(epochs=epochs)
            for _, text, seed in (key for key in todo if key[0] == scenario):
                plan = Plan.from_json(text)
                checkpoint = file.path.with_name(f"{file.path.stem}-{scenario}-{plan.key}-{seed}.checkpoint")
                try:
                    result = train(problem, evaluator.prepared(plan), how, seed, checkpoint, progress)
                except Diverged as error:
                    checkpoint.unlink(missing_ok=True)
                    bar.write(f"{scenario}: the student of plan {text} is left out: {error}")
                    continue
                own = {name: value for name, value in asdict(result).items() if name not in ("history", "seconds")}
                row = Retrained(scenario, text, seed, epochs, **own)
                file.append(row)
                known.append(row)
                bar.update()
    return known


@click.command(cls=Command)
@click.option("--results", type=options.Place(path_type=Path), required=True, metavar="DIR",
              help="Folder of `bench run`, or a results file.")  # fmt: skip
@click.option("--data", help="For scenarios on CIFAR-10: imagefolder:DIR, or torchvision's if absent.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Searches of each agent whose winner is distilled."
)
@click.option("--scenario", "scenarios", multiple=True, help="Only this one; all if absent. May be repeated.")
@click.option("--agent", "agents", multiple=True, help="Only this one; all if absent. May be repeated.")
def main(
    results: Path, data: str | None, epochs: int, seeds: int, scenarios: tuple[str, ...], agents: tuple[str, ...]
) -> None:
    """Distil the best student of each agent's searches fully, each with a fresh seed, and measure it on test images.

    Everything that is finished is kept beside the results and skipped; `compress-env bench report` then has it as a column.

    \b
    python -m benchmarks.retrain --results runs/bench --epochs 30 --seeds 5
    compress-env bench report --out runs/bench
    """
    path = results / "results.jsonl" if results.is_dir() else results
    retrain(path, epochs, seeds, data=data, scenarios=scenarios, agents=agents)
    click.echo(path_of(path))
    extra = "" if path.name == "results.jsonl" else f" --results {shlex.quote(str(path))}"
    click.echo(f"next: compress-env bench report --out {shlex.quote(str(path.parent))}{extra}")


if __name__ == "__main__":
    main()
