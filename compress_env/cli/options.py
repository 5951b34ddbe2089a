"""What commands share: options, what their texts mean, and how bad input ends."""

from __future__ import annotations

import json
from typing import Any

import click

from compress_env.errors import UserError


class _Failure(click.ClickException):
    """Bad input: one line, exit code 2."""

    exit_code = 2


class _Plain:
    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except UserError as error:
            raise _Failure(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. What was done so far is kept; the same command goes on from there (a search with --resume).",
                err=True,
            )
            raise click.exceptions.Exit(130) from None


class Group(_Plain, click.Group):
    """Commands in which bad input is one line, and Ctrl-C no traceback."""


class Command(_Plain, click.Command):
    """The same for a command of its own."""


def name_values(_context, _parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`("tau=0.01", "n_top=2")` as a dict; what is not JSON stays text."""
    options: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE, for example learning_rate=0.001")
        try:
            options[name] = json.loads(text)
        except json.JSONDecodeError:
            options[name] = text
    return options


def limits(_context, _parameter, values: tuple[str, ...]) -> dict[str, str | list[str]]:
    """`("macs=0.5", "latency=1ms..2ms")` as a dict, ranges as pairs. What the values mean is for `parse_budget` to say."""
    budget: dict[str, str | list[str]] = {}
    for value in values:
        name, equals, amount = value.partition("=")
        if not equals or not amount:
            raise click.BadParameter(f"{value!r} is not RESOURCE=LIMIT, for example macs=0.5")
        if name in budget:
            raise click.BadParameter(f"{name} is given twice")
        budget[name] = amount.split("..", 1) if ".." in amount else amount
    return budget


TEACHER = click.option(
    "--teacher", default="resnet8-digits", show_default=True, help="Name, module:factory or file.py:factory."
)
WEIGHTS = click.option(
    "--weights", type=click.Path(), help="Weights of a teacher given by factory: safetensors, or a state dict."
)
DATA = click.option(
    "--data",
    help="digits, cifar10, fashion-mnist, imagefolder:DIR or module:factory; the shipped teacher's own if absent.",
)
AGENT_OPTION = click.option(
    "--agent-option",
    multiple=True,
    callback=name_values,
    metavar="NAME=VALUE",
    help="Of the agent's own, e.g. learning_rate=0.001.",
)

NETWORK = (
    TEACHER,
    WEIGHTS,
    DATA,
    click.option("--image-size", type=click.IntRange(1), help="Pixels, for a folder of images of different sizes."),
    click.option("--mean", help="Means a channel that the teacher was trained with, e.g. 0.485,0.456,0.406."),
    click.option("--std", help="Standard deviations a channel, likewise."),
    click.option(
        "--budget",
        multiple=True,
        callback=limits,
        metavar="RESOURCE=LIMIT",
        default=("macs=0.5",),
        show_default=True,
        help="params, macs, memory or latency; a share of the teacher (0.5, 50%) or absolute (300K, 20M, 2ms, 1MiB). "
        "LOW..HIGH draws a limit for each student. May be repeated.",
    ),
)
"""The teacher, its data and the budget."""


SCOPE = (
    click.option(
        "--keep",
        multiple=True,
        metavar="PATTERN",
        help="Layers that stay as they are, e.g. 'stages.0.*'. May be repeated.",
    ),
    click.option(
        "--removable", multiple=True, metavar="PATTERN", help="Only these layers may be removed. May be repeated."
    ),
    click.option(
        "--shrinkable", multiple=True, metavar="PATTERN", help="Only these layers may be shrunk. May be repeated."
    ),
    click.option(
        "--channel-multiple",
        type=click.IntRange(1),
        help="Widths are multiples of it, for hardware that computes 8, 16 or 32 channels at a time; 8 with a latency budget, else 1.",
    ),
    click.option(
        "--min-width",
        type=click.FloatRange(0, 1),
        default=0.1,
        show_default=True,
        help="Smallest share of a layer's channels.",
    ),
)
"""What of a network a search may change, alike for every command that looks at it; the names are those of `trace`."""


LATENCY = (
    click.option(
        "--runtime",
        type=click.Choice(["eager", "compile", "onnxruntime"]),
        default="eager",
        show_default=True,
        help="What will run the student: latency is measured in it.",
    ),
    click.option("--latency-batch", type=click.IntRange(1), default=1, show_default=True, help="Inputs at once."),
    click.option(
        "--latency-threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of a pass."
    ),
)
"""What latency is measured with."""


def with_options(options):
    """A decorator that adds options which several commands have."""

    def add(command):
        for option in reversed(options):
            command = option(command)
        return command

    return add


def patterns(scope: dict[str, Any]) -> dict[str, Any]:
    """The options as `trace` takes them: no pattern for what may be removed or shrunk means everything."""
    scope = {name: value for name, value in scope.items() if value is not None}
    lists = {name: list(scope[name]) for name in ("keep", "removable", "shrinkable")}
    return scope | {name: patterns or ([] if name == "keep" else ["*"]) for name, patterns in lists.items()}


def latency_setting(runtime: str, batch: int, threads: int) -> dict[str, str | int]:
    return {"runtime": runtime, "batch": batch, "threads": threads}


def shape(_context, _parameter, value: str | None) -> tuple[int, ...] | None:
    """`"3,224,224"` as a tuple."""
    if value is None:
        return None
    if not all(part.strip().isdecimal() and int(part) > 0 for part in value.split(",")):
        raise click.BadParameter(f"{value!r} is not a shape of one input without the batch, for example 3,224,224")
    return tuple(int(part) for part in value.split(","))


def normalization(mean: str | None, std: str | None):
    """`(means, deviations)` from two comma-separated lists, or None."""
    if mean is None and std is None:
        return None
    try:
        values = tuple(tuple(float(v) for v in text.split(",")) for text in (mean or "", std or ""))
    except ValueError:
        raise click.BadParameter("--mean and --std have to be given together, as numbers with commas") from None
    if len(values[0]) != len(values[1]) or min(values[1]) <= 0:
        raise click.BadParameter("--mean and --std need one number a channel each, deviations above 0")
    return values
