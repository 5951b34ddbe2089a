"""`python -m benchmarks.latency`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.spec import RUNTIMES, ProblemSpec


@click.command(cls=Command)
@click.option("--teacher", "teachers", multiple=True, help="Name, module:factory or file.py:factory. May be repeated.")
@click.option("--runtime", "runtimes", multiple=True, type=click.Choice(list(RUNTIMES)), default=("eager", "onnxruntime"),
              show_default=True, help="May be repeated.")  # fmt: skip
@click.option("--budget", "budgets", multiple=True, type=options.Finite(0, 1, min_open=True), default=(0.75, 0.5, 0.35),
              show_default=True, help="Share of the teacher's latency. May be repeated.")  # fmt: skip
@click.option(
    "--random-policies", type=click.IntRange(0), default=1, show_default=True, help="Beside the uniform policy."
)
@click.option("--input-side", type=click.IntRange(8), default=224, show_default=True,
              help="Pixels of images for teachers that are not shipped.")  # fmt: skip
@options.of(ProblemSpec, "channel_multiple", "latency_batch", "latency_threads", "device", channel_multiple=8, device="cpu")
@click.option("--out", type=options.Place(dir_okay=False, path_type=Path), default=Path("latency.jsonl"), show_default=True,
              help="JSON lines.")  # fmt: skip
def main(
    teachers: tuple[str, ...], runtimes: tuple[str, ...], budgets: tuple[float, ...], random_policies: int, input_side: int, out: Path,
    **problem: Any,
) -> None:  # fmt: skip
    """Find students for shares of a teacher's latency, measure each beside its teacher once more, and print a Markdown table.

    No data and no accuracy is needed. Rows are written as they come; the same command goes on after an interruption.

    \b
    python -m benchmarks.latency --out latency.jsonl
    python -m benchmarks.latency --teacher net.py:make --runtime onnxruntime --latency-threads 2 --budget 0.5
    """
    from benchmarks.latency.measure import TEACHERS, run, table

    spec = ProblemSpec(
        input_shape=(3, input_side, input_side), ranking="magnitude", resources=("latency",), **problem
    )
    click.echo(table(run(out, teachers or TEACHERS, spec, runtimes, budgets, random_policies)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.latency")
