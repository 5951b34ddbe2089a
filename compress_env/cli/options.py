"""The options of commands, made from the settings in `compress_env.spec`: name, help, default and range are those of the field."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from compress_env.errors import UserError
from compress_env.name_value import parse_setting
from compress_env.presets import with_preset
from compress_env.registry import unknown
from compress_env.settings import Settings
from compress_env.spec import EnvironmentSpec, SearchSpec

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def of(spec: type[Settings], *names: str, without: Collection[str] = (), **defaults: Any) -> Callable[[Decorated], Decorated]:
    """A decorator that gives a command an option for each setting.

    Args:
        spec: A dataclass of settings.
        names: The fields that become options; all but hidden ones if none is given.
        without: Fields that do not.
        defaults: Defaults of this command, by field.

    Returns:
        The decorator; the command gets its values under the names of the fields.
    """
    hints = get_type_hints(spec)
    own = {f.name: f for f in fields(spec)}  # type: ignore[arg-type]
    chosen = names or [n for n, f in own.items() if n not in without and not f.metadata.get("hidden")]
    added = [_option(own[n], hints[n], defaults.get(n, _default(own[n]))) for n in chosen]

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


def quiet(command: Decorated) -> Decorated:
    """A decorator that gives a command `--quiet`."""
    return click.option("--quiet", is_flag=True, help="Only the result: no bars, and no notes on how far it is.")(command)


def as_json(what: str) -> Callable[[Decorated], Decorated]:
    """A decorator that gives a command `--json`, as the argument `as_json`.

    Args:
        what: What is printed then, for its help.
    """
    return click.option("--json", "as_json", is_flag=True, help=f"{what} as JSON instead of a table.")


def specs(given: Mapping[str, Any]) -> tuple[EnvironmentSpec, SearchSpec]:
    """The settings of a search from the values of its options.

    Those that are absent have the values of the earlier system that the agent's name stands for, if it does, and else their defaults.

    Raises:
        UserError: If a value cannot be used.
    """
    search, context = {f.name for f in fields(SearchSpec)}, click.get_current_context(silent=True)
    own = {n: v for n, v in given.items() if n not in search}
    absent = {n for n in own if context and context.get_parameter_source(n) is click.core.ParameterSource.DEFAULT}
    further = with_preset(given.get("agent"), {n: v for n, v in own.items() if n not in absent})
    environment = EnvironmentSpec.of_keywords(**{**own, **further})
    return environment, SearchSpec.of(**{n: v for n, v in given.items() if n in search})


class Numbers(click.ParamType):
    """Numbers with commas between them, as a tuple."""

    name = "NUMBER,..."

    def __init__(self, number: type):
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The tuple. Fails for anything but numbers."""
        try:
            found = tuple(self.number(part) for part in value.split(",")) if isinstance(value, str) else value
            if all(map(math.isfinite, found)):
                return found
            raise ValueError
        except (TypeError, ValueError, OverflowError):
            kind = "whole numbers" if self.number is int else "numbers"
            self.fail(f"{value!r} is not {kind} with commas between them", param, ctx)


class Finite(click.FloatRange):
    """A number, which infinity and what is no number are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return found


class Place(click.Path):
    """A path of at least a letter: an empty one is what is left of a shell variable that is not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if not os.fspath(value):
            self.fail("it is empty; give a path", param, ctx)
        return super().convert(value, param, ctx)


class NameValue(click.ParamType):
    """`NAME=VALUE` as a pair.

    Args:
        metavar: How help and messages write it.
        kinds: Names that are known, with the types of their values; any name and any JSON or text if None.
        example: For messages.
    """

    def __init__(self, metavar: str, kinds: Mapping[str, click.ParamType] | None, example: str = ""):
        self.name, self.kinds, self.example = metavar, kinds, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The pair. Fails for a text without `=`, and where names are known for another name or a value of another type."""
        if not isinstance(value, str):
            return value
        try:
            name, found = parse_setting(value, self.name)
        except UserError as error:
            self.fail(f"{error}{self.example}", param, ctx)
        if self.kinds is None:
            return name, found
        if name not in self.kinds:
            self.fail(unknown("setting", name, list(self.kinds)), param, ctx)
        return name, self.kinds[name].convert(value.partition("=")[2], param, ctx)


class _OrNone(click.ParamType):
    """A value, or `none`."""

    def __init__(self, kind: click.ParamType):
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if str(value).lower() in ("none", "null") else self.kind.convert(value, param, ctx)


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _option(field: Field, hint: Any, default: Any) -> Callable[[Decorated], Decorated]:
    """The option of one field."""
    meta = field.metadata
    flag = meta.get("option", f"--{field.name.replace('_', '-')}")
    metavar: str | None = meta.get("metavar") or ("PATH" if meta.get("path") else None)
    if "choices" in meta:  # the dataclass refuses others, with the nearest one
        metavar = f"[{'|'.join(meta['choices'])}]"
    form = metavar or "NAME=VALUE"
    kind, _ = _without_none(hint)
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=default, show_default=True, help=meta["help"])
    arguments: dict[str, Any] = {"help": meta["help"], "metavar": metavar, "default": default, "show_default": default is not None}
    if isinstance(kind, type) and issubclass(kind, Settings):
        hints = get_type_hints(kind)
        kinds = {f.name: _kind(hints[f.name], f.metadata, none=True) for f in fields(kind)}  # type: ignore[arg-type]
        known = ", ".join(f"{f.name}={_text(_default(f))}" for f in fields(kind))  # type: ignore[arg-type]
        arguments |= {"help": f"{meta['help']} Settings and their defaults: {known}.", "type": NameValue(form, kinds), **_MANY}
    elif get_origin(kind) is Mapping or kind is Mapping:
        shown = [f"{n}={_text(v)}" for n, v in default.items()]
        example = f", for example {shown[0]}" if shown else ""
        arguments |= {"type": NameValue(form, None, example), **_MANY, "default": shown or None, "show_default": bool(shown)}
    elif get_origin(kind) is tuple and get_args(kind)[0] in (str, Any):
        arguments |= {"type": str, "multiple": True, "show_default": bool(default)}
    else:
        arguments["type"] = _kind(hint, meta)
    return click.option(flag, field.name, **arguments)


def _pairs(_context: click.Context, _parameter: click.Parameter, values: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """`NAME=VALUE`s that were given, as a dict."""
    found: dict[str, Any] = {}
    for name, value in values:
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        found[name] = value
    return found


_MANY: dict[str, Any] = {"multiple": True, "callback": _pairs, "default": None, "show_default": False}


def _kind(hint: Any, meta: Mapping[str, Any], none: bool = False) -> click.ParamType:
    """The type of an option's value; with `none`, an optional one may be written `none`."""
    kind, optional = _without_none(hint)
    if get_origin(kind) is tuple:
        found: click.ParamType = Numbers(get_args(kind)[0])
    elif kind is int:
        found = click.IntRange(meta.get("low"), meta.get("high")) if "low" in meta or "high" in meta else click.INT
    elif kind is float:
        found = Finite(meta.get("low"), meta.get("high"))
    elif kind is bool:
        found = click.BOOL
    else:
        found = click.STRING
    return _OrNone(found) if none and optional else found


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without `| None`, and whether it had it."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    rest = [a for a in get_args(hint) if a is not NoneType]
    return rest[0], len(rest) < len(get_args(hint))


def _text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
