"""`compress-env inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.spec import EnvironmentSpec, ProblemSpec

FIELDS = (
    "teacher", "weights", "data", "image_size", "input_shape", "protect", "removable", "shrinkable", "channel_multiple", "min_width",
    "resources", "runtime", "latency_batch", "latency_threads",
)  # fmt: skip


@click.command(short_help="What can be removed from a teacher or shrunk, and what that saves.")
@options.of(ProblemSpec, *FIELDS)
@click.option("--picture", type=options.Place(dir_okay=False), metavar="FILE.png", help="Draw it too: .png, .svg or .pdf.")
@click.option(
    "--sensitivities", is_flag=True, help="Measure what each decision costs alone; needs the teacher's weights and data, and takes "
    "40 to 200 evaluations, once.",
)  # fmt: skip
@options.quiet
@options.as_json("Parts, shares and smallest usages, with sensitivities if they are asked for,")
def inspect(picture: str | None, sensitivities: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Show a teacher as a tree of blocks, which can be removed, and groups of channels, which can shrink: what each one saves,
    what is left alone and why, and the smallest usage of each resource that a budget can ask for.

    Of --data only the shape of the inputs is used, and no --weights are needed: costs do not depend on them. With --sensitivities
    students are judged on --data, so that both are needed then.

    \b
    compress-env inspect --teacher resnet20-cifar10
    compress-env inspect --teacher net.py:make --input-shape 3,224,224 --protect 'stem.*' --picture net.png
    compress-env inspect --teacher net.py:make --input-shape 3,224,224 --resource latency --runtime onnxruntime
    compress-env inspect --teacher resnet8-digits --sensitivities --picture net.png
    """
    from compress_env.report.inspect import inspect, text
    from compress_env.report.tree import check_place, save_picture

    if picture:
        check_place(picture)
    found = inspect(**settings, progress=not quiet)
    if not as_json:
        click.echo(text(found, min(120, shutil.get_terminal_size((100, 24)).columns)))
    if picture:
        click.echo(f"\npicture: {save_picture(found, picture)}", err=as_json)
    measured = _sensitivities(picture, settings, not quiet, as_json) if sensitivities else {}
    if as_json:
        click.echo(json.dumps(found.to_json() | measured, indent=2))


def _sensitivities(picture: str | None, settings: dict[str, Any], progress: bool, as_json: bool) -> dict[str, Any]:
    """What each decision costs alone, as text and beside the picture; returned for JSON."""
    from compress_env.objective import Objective
    from compress_env.report import sensitivities

    resources = settings.pop("resources", None) or ()
    budget: dict[str, Any] = dict.fromkeys(("macs", *resources), 1.0)
    spec = EnvironmentSpec(ProblemSpec.of(**settings), budget)
    objective = Objective(spec, progress=progress)
    if not as_json:
        click.echo(f"\n{sensitivities.text(objective)}")
    if picture:
        path = Path(picture)
        saved = sensitivities.save_picture(objective, path.with_stem(f"{path.stem}-sensitivities"))
        click.echo(f"\npicture: {saved}", err=as_json)
    return {"sensitivities": objective.sensitivities.to_json()}
