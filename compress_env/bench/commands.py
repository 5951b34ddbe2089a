"""`compress-env bench ...`: measurements that anyone can repeat. Heavy modules are imported where they are used."""

from __future__ import annotations

import click


@click.group(short_help="Measurements of this package that anyone can repeat.")
def bench() -> None:
    """Measurements of this package that anyone can repeat, each one command, resumable where it takes long."""


@bench.command(short_help="Measured latency of students against their budget.")
@click.option("--teacher", "teachers", multiple=True, help="Name, module:factory or file.py:factory. May be repeated.")
@click.option("--runtime", "runtimes", multiple=True, type=click.Choice(["eager", "compile", "onnxruntime"]),
              default=("eager", "onnxruntime"), show_default=True, help="May be repeated.")  # fmt: skip
@click.option("--budget", "budgets", multiple=True, type=click.FloatRange(0, 1, min_open=True), default=(0.75, 0.5, 0.35),
              show_default=True, help="Share of the teacher's latency. May be repeated.")  # fmt: skip
@click.option("--random-policies", type=click.IntRange(0), default=1, show_default=True, help="Beside the uniform policy.")
@click.option("--input-side", type=click.IntRange(8), default=224, show_default=True,
              help="Pixels of images for teachers that are not shipped.")  # fmt: skip
@click.option("--channel-multiple", type=click.IntRange(1), default=8, show_default=True, help="Widths are multiples of it.")
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
    from pathlib import Path

    from compress_env.bench.latency import TEACHERS, run, table
    from compress_env.resources.runtimes import Setting

    settings = [Setting(runtime, latency_batch, latency_threads, device) for runtime in runtimes]
    shape = (3, input_side, input_side)
    click.echo(table(run(Path(out), teachers or TEACHERS, settings, budgets, random_policies, shape, channel_multiple)))
