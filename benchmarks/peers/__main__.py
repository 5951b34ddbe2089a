"""`python -m benchmarks.peers`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.errors import UserError
from compress_env.spec import EnvironmentSpec, ProblemSpec

METHODS = ("magnitude-uniform", "magnitude-global", "taylor-global", "bn-scale-global")


def _show(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value:
        from benchmarks.peers.compare import PeerResult
        from benchmarks.peers.table import table
        from compress_env.files import JsonLines

        results = JsonLines(value, PeerResult, header=True)
        rows = results.read()
        if not rows:
            raise UserError(f"there are no results in {value}; `python -m benchmarks.peers --out DIR` makes DIR/peers.jsonl")
        click.echo(table(results.settings, rows))
        context.exit()


@click.command(cls=Command)
@options.of(ProblemSpec, "teacher", "weights", "data", "device")
@options.of(EnvironmentSpec, "budget")
@click.option("--method", "methods", multiple=True, default=METHODS, show_default=True,
              help="Pruners of torch-pruning; also taylor-uniform and bn-scale-uniform. May be repeated.")  # fmt: skip
@click.option("--run", "runs", multiple=True, type=options.Place(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder of a search whose best student takes part. May be repeated.")  # fmt: skip
@click.option("--finetune-epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option("--lr", type=options.Finite(0, min_open=True),
              help="Peak rate; that of full distillation if absent, which is low for few epochs.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Fine-tunings of each student.")
@click.option("--show", type=options.Place(path_type=Path, dir_okay=False), is_eager=True, expose_value=False,
              metavar="FILE.jsonl", callback=_show, help="Print a table of results and stop.")  # fmt: skip
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
def main(
    budget: dict[str, Any], methods: tuple[str, ...], runs: tuple[Path, ...], finetune_epochs: int, lr: float | None, seeds: int,
    out: Path, **problem: Any,
) -> None:  # fmt: skip
    """Bring torch-pruning's pruners to the MACs of a budget, put the uniform student and those of searches beside them,
    fine-tune all with the same recipe, loss, data and seeds, and print a Markdown table.

    \b
    compress-env search --budget macs=0.5 --finetune-epochs 0 --out runs/a
    python -m benchmarks.peers --budget macs=0.5 --run runs/a --finetune-epochs 20 --out runs/peers
    python -m benchmarks.peers --show benchmarks/peers/resnet20-50.jsonl

    The default peak rate suits students that are refitted; those of torch-pruning start from less, and may do better in few
    epochs with a higher one. Interrupted, the same command goes on. OUT then has peers.jsonl and peers.md.
    """
    from benchmarks.peers.compare import compare, contestants, limit_of
    from benchmarks.peers.table import table
    from compress_env.files import write_text
    from compress_env.problem import Problem

    limit_of(budget, 1.0)  # refuse before the teacher is loaded
    built = Problem.build(ProblemSpec(**problem), progress=True)
    limit = limit_of(budget, built.cost_model.teacher["macs"])
    chosen = contestants(built, limit, methods, runs)
    text = table(*compare(built, chosen, limit, finetune_epochs, seeds, out, lr))
    command = "python -m benchmarks.peers " + shlex.join(sys.argv[1:])
    write_text(out / "peers.md", f"{text}\n\nMade by\n\n    {command}\n")
    click.echo(f"{text}\n\n{out / 'peers.jsonl'}, {out / 'peers.md'}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.peers")
