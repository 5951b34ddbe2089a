"""`compress-env distill`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from compress_env.cli import options
from compress_env.cli.trust import trust_of, trusting
from compress_env.spec import FinetuneSpec, ProblemSpec, SearchSpec

if TYPE_CHECKING:
    from compress_env.distilling import Distilled

FIELDS = ("teacher", "weights", "data", "validation", "classes", "image_size", "augmentation", "mean", "std", "task", "device")


@click.command(short_help="Train a student of any design to answer as its teacher does.")
@trusting
@click.option(
    "--student", required=True, metavar="SPEC", help="module:factory or file.py:factory, which is called without arguments and begins "
    "with random weights; the name of a shipped network, with its weights; or a run folder, whose student is trained further.",
)  # fmt: skip
@click.option("--student-weights", type=options.Place(), metavar="PATH", help="Weights that the student begins with.")
@options.of(ProblemSpec, *FIELDS)
@options.of(FinetuneSpec, "epochs", "lr", "batch_size", "accumulate", "loss", "temperature", "label_weight")
@options.of(SearchSpec, "seed")
@click.option("--out", type=options.Place(), required=True, help="Folder for the student, its exports and result.json.")
@options.quiet
@options.as_json("The content of result.json")
def distill(student: str, trust: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Distil a teacher into a student, also one designed by hand, compare both, and write weights, exports and result.json.

    Losses: hinton (soft targets at a temperature, the default), mimic (squared distance of the logits), dkd, dist, standardised, or
    labels, which ignores the teacher; docs/distillation.md has the formulas. Images without labels do: --data images:DIR.

    \b
    compress-env distill --teacher resnet8-digits --student net.py:make --loss hinton --temperature 4 --label-weight 0.1 --out runs/d
    compress-env distill --teacher resnet20-cifar10 --data imagefolder:DIR --student net.py:make --loss mimic --epochs 60 --out runs/m
    compress-env distill --teacher net.py:large --weights large.pt --data images:DIR --student net.py:small --out runs/u

    Ctrl-C loses less than an epoch; the same command goes on.
    """
    from compress_env.distilling import distil, is_folder
    from compress_env.search.store import RunFolder

    folders = [RunFolder(student)] if is_folder(student) else []
    named = [value for name in ("teacher", "data", "task") if isinstance(value := settings[name], str)]
    command = "compress-env " + shlex.join(sys.argv[1:])
    done = distil(student=student, trust=trust_of(folders, trust, named), command=command, progress=not quiet, **settings)
    if as_json:
        click.echo(json.dumps(asdict(done.result), indent=2))
    else:
        show(done)


def show(done: Distilled) -> None:
    """Print the teacher beside the student, and where the files are."""
    from compress_env.resources.base import amount

    result = done.result
    teacher, student = result.teacher, result.student
    rows = [("", "teacher", "student", "")]
    for label, form, before, after in (
        (f"validation {result.metric}", "{:.2%}".format, teacher.metric_validation, student.metric_validation),
        (f"test {result.metric}", "{:.2%}".format, teacher.metric_test, student.metric_test),
        ("Parameters", amount, teacher.params, student.params), ("MACs", amount, teacher.macs, student.macs),
        ("file size, bytes", "{:,.0f}".format, teacher.file_bytes, student.file_bytes),
    ):  # fmt: skip
        rows.append((label, form(before), form(after), f"{after / before:.1%}" if before else ""))
    for a, b, c, d in rows:
        click.echo(f"{a:20} {b:>18} {c:>14} {d:>8}")
    went, recipe = done.finetuned, result.recipe
    click.echo(
        f"{recipe['loss']}, best epoch {went.best_epoch} of {went.epochs}, before training {went.history[0]:.2%}; peak learning rate "
        f"{recipe['lr']:g}"
    )
    click.echo(f"files: {done.folder}")
