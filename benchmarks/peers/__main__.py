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
from compress_env.spec import EnvironmentSpec, FinetuneSpec, ProblemSpec

PRUNERS = (
    "magnitude-uniform", "magnitude-global", "taylor-uniform", "taylor-global", "taylor-isomorphic", "bn-scale-uniform",
    "bn-scale-global",
)  # fmt: skip
METHODS = (*PRUNERS, *(f"{name}+refit" for name in PRUNERS))


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
@options.of(ProblemSpec, "teacher", "weights", "data", "device", "channel_multiple", "runtime", "latency_batch", "latency_threads")
@options.of(EnvironmentSpec, "budget")
@click.option("--method", "methods", multiple=True, default=METHODS, show_default=True,
              help="Pruners of torch-pruning, also magnitude-isomorphic, and fastnas, which is ModelOpt's; with +refit behind it, a "
                   "student of its widths, with our choice of channels and our refit. May be repeated.")  # fmt: skip
@click.option("--run", "runs", multiple=True, type=options.Place(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder of a search whose best student takes part. May be repeated.")  # fmt: skip
@click.option("--finetune-epochs", "epochs", type=click.IntRange(0), default=(30,), show_default=True, multiple=True,
              help="May be repeated, each a training of its own; 0 for students right after the surgery.")  # fmt: skip
@options.of(FinetuneSpec, "lr", "loss", "examples")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Fine-tunings of each student.")
@click.option("--show", type=options.Place(path_type=Path, dir_okay=False), is_eager=True, expose_value=False,
              metavar="FILE.jsonl", callback=_show, help="Print a table of results and stop.")  # fmt: skip
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
def main(
    budget: dict[str, Any], methods: tuple[str, ...], runs: tuple[Path, ...], epochs: tuple[int, ...], lr: float | None,
    loss: Any, examples: int | None, seeds: int, out: Path, **problem: Any,
) -> None:  # fmt: skip
    """Bring peers' pruners to the MACs or the measured time of a budget, put the uniform student, the allocation and the
    best students of searches beside them, fine-tune all with the same recipe, loss, data and seeds, and print a Markdown table.

    \b
    compress-env search --budget latency=60% --runtime onnxruntime --finetune-epochs 0 --out runs/a
    python -m benchmarks.peers --budget latency=60% --runtime onnxruntime --run runs/a --finetune-epochs 3 --out runs/peers
    python -m benchmarks.peers --budget macs=0.5 --finetune-epochs 20 --out runs/peers-macs
    python -m benchmarks.peers --budget macs=0.5 --finetune-epochs 4 --loss mimic --examples 512 --out runs/few
    python -m benchmarks.peers --show benchmarks/peers/resnet20-50.jsonl

    Time is measured where --runtime says, each student beside its teacher; leave the machine alone meanwhile. The default peak rate
    suits students that are refitted; those of torch-pruning start from less, and may do better in few epochs with a higher one.
    Interrupted, the same command goes on, and further methods, epochs and seeds are added to what is there. OUT then has peers.jsonl,
    students.jsonl, peers.md and, for several lengths of training, peers.svg.
    """
    from benchmarks.peers.compare import compare
    from benchmarks.peers.curves import curves
    from benchmarks.peers.limits import Bound, parsed
    from benchmarks.peers.students import Makers
    from benchmarks.peers.table import table
    from compress_env.files import write_text
    from compress_env.problem import Problem

    parsed(budget)  # refuse before the teacher is loaded
    how = FinetuneSpec(lr=lr, loss=loss, examples=examples)
    built = Problem.build(EnvironmentSpec(ProblemSpec(**problem), budget=budget).problem, progress=True)
    makers = Makers(Bound.of(built, budget), out)
    contestants = [makers.plan("uniform", makers.uniform), makers.plan("allocation", makers.allocation)]
    contestants += [*map(makers.run, runs), *map(makers.peer, methods)]
    settings, rows = compare(makers, contestants, epochs, seeds, out, how)
    text = table(settings, rows)
    command = "python -m benchmarks.peers " + shlex.join(sys.argv[1:])
    write_text(out / "peers.md", f"{text}\n\nMade by\n\n    {command}\n")
    drawn = curves(settings, rows)
    if drawn:
        write_text(out / "peers.svg", drawn)
    click.echo(f"{text}\n\n{out / 'peers.jsonl'}, {out / 'peers.md'}{', ' + str(out / 'peers.svg') if drawn else ''}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.peers")
