"""`--config`: options from a YAML file, or from the `run.json` of another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compress_env.cli import options
from compress_env.cli.options import Decorated
from compress_env.errors import UserError
from compress_env.own_code import check_trust
from compress_env.registry import unknown
from compress_env.settings import OBJECT
from compress_env.spec import keywords

NOT_IN_FILES = ("config", "trust", "resume", "dry_run", "help")
"""Options that say how to call a command, not what it is to do."""


def configured(command: Decorated) -> Decorated:
    """A decorator that gives a command `--config` and `--trust`; its body calls `check_config` with the latter."""
    command = click.option(
        "--config", type=options.Place(exists=True, dir_okay=False), is_eager=True, expose_value=False, callback=_read, metavar="FILE",
        help="Options from a YAML file, by their names without dashes in front (evaluations: 200, budget: {macs: 50%}), or the "
        "run.json of another run. The command line wins.",
    )(command)  # fmt: skip
    told = "Run code of one's own that --config names, such as a reward in a file."
    return click.option("--trust", is_flag=True, help=told)(command)


def check_config(trust: bool) -> None:
    """Look whether code that the file names may be run: code of options that are given on the command line may.

    Raises:
        UserError: If it may not.
    """
    context = click.get_current_context()
    if found := context.meta.get(__name__):
        path, objects = found
        for name, kind in objects.items():
            if context.get_parameter_source(name) is ParameterSource.DEFAULT:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"--config {path}: the {name} of that run was a Python object ({kind}); give {option}")
        from_file = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP}
        check_trust({name: context.params[name] for name in from_file}, trust, path)


def _read(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    """Make what is in a file the defaults of the options."""
    if path is None:
        return
    import yaml

    from compress_env.search.store import flat

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {error}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"--config {path} holds no options; a line of it is for example `evaluations: 200`")
    is_run = isinstance(found.get("environment"), Mapping) and isinstance(found.get("search"), Mapping)
    given = flat(found) if is_run else found
    known = {
        name: p for p in context.command.params if isinstance(p, click.Option) and p.name not in NOT_IN_FILES
        for name in (p.name, *(flag[2:] for flag in p.opts if flag.startswith("--")))
    }  # fmt: skip
    chosen: dict[str, Any] = {}
    objects: dict[str, str] = {}
    for name, value in given.items():
        option = known.get(str(name).replace("-", "_")) or known.get(str(name))
        if option is None and is_run:
            _check_without_option(str(name), value, given, path)
            continue
        if option is None:
            names = sorted(str(p.name) for p in set(known.values()))
            raise UserError(f"--config {path}: {unknown('option', str(name), names)}")
        if isinstance(value, Mapping) and OBJECT in value:
            objects[str(option.name)] = str(value[OBJECT])
        elif value is not None:
            chosen[str(option.name)] = partial(_checked, context, option, value, f"--config {path}: {name}")
    context.default_map = {**(context.default_map or {}), **chosen}
    context.meta[__name__] = path, objects


def _check_without_option(name: str, value: Any, given: Mapping[str, Any], path: str) -> None:
    """Raises UserError for a setting of a run that has no option, unless it is the default or follows from the budget."""
    default = set(value) <= set(given["budget"]) if name == "resources" else value == keywords().get(name)
    if not default:
        raise UserError(f"--config {path} has {name}={value!r}, which is set from Python only: compress(..., {name}={value!r})")


def _checked(context: click.Context, option: click.Option, value: Any, where: str) -> str | list[str]:
    """A value as it would be typed. Raises UserError, which begins with `where`, for one that the option does not take."""
    try:
        typed = _as_typed(option, value)
        option.process_value(context, typed)
    except click.BadParameter as error:
        raise UserError(f"{where}: {error.message}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    return typed


def _as_typed(option: click.Option, value: Any) -> str | list[str]:
    """A value as it would be typed: a text, or a list of them for an option that may be repeated."""
    if isinstance(value, Mapping) and isinstance(option.type, options.NameValue):
        return [f"{name}={_text(each)}" for name, each in value.items()]
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, (Mapping, list, set)) for part in parts):
        raise UserError(f"{value!r} is no value of {option.opts[0]}")
    texts = [_text(part) for part in parts]
    return texts if option.multiple else ",".join(texts)


def _text(value: Any) -> str:
    """JSON, but for a text, and for what YAML has beside JSON, such as dates."""
    is_json = value is None or isinstance(value, (bool, int, float, Mapping, list))
    return json.dumps(value, default=str) if is_json else str(value)
