"""How a setting is declared, and how settings are checked, recorded and read again. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from compress_env.errors import UserError
from compress_env.records import Damaged, value_of
from compress_env.registry import unknown

OBJECT = "python object"
"""Key of a value in JSON that stands for an object, which JSON cannot hold."""

S = TypeVar("S", bound="Settings")


def setting(default: Any, help: str, *, factory: Any = None, **cli: Any) -> Any:
    """A field with a help text.

    Args:
        default: Its default.
        help: A sentence or two for `--help` and for tables of arguments.
        factory: Makes the default, where it is mutable.
        cli: Arguments of the command line's option, such as `metavar`, `choices`, `low` and `high` (of a number); `hidden=True` for
            a setting that has none.
    """
    metadata = {"help": help, **cli}
    return field(default_factory=factory, metadata=metadata) if factory else field(default=default, metadata=metadata)


class Settings:
    """What dataclasses of settings share: construction by name, and JSON."""

    def check_numbers(self, of: str = "") -> None:
        """Raises UserError for a number that is not finite, of another type than its setting, or outside the setting's range.

        Args:
            of: What stands before the name in the message.
        """
        hints = get_type_hints(type(self))
        for f in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, f.name), hints[f.name]
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
                raise UserError(f"{of}{f.name} has to be finite, got {value!r}")
            kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            if kinds[0] in (int, float, bool) and not (value is None and NoneType in kinds):
                _check(of + f.name, value, kinds[0], f.metadata.get("low"), f.metadata.get("high"))

    @classmethod
    def of(cls: type[S], **given: Any) -> S:
        """Made of keywords. Raises UserError that suggests the nearest name for one that is not known."""
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name in given:
            if name not in known:
                raise UserError(unknown("argument", name, known))
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; an object (a module, datasets, a function) is marked by its type."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls: type[S], data: Mapping[str, Any]) -> S:
        """The settings of `to_json`. Raises UserError if one of them was an object, and Damaged for one of another type."""
        if not isinstance(data, Mapping):
            raise Damaged(f"the {cls.__name__} is {data!r}, not an object")
        for name, value in data.items():
            if isinstance(value, Mapping) and OBJECT in value:
                raise UserError(
                    f"the {name} of this run was a Python object ({value[OBJECT]}), which a file cannot hold; go on from Python, with "
                    f"compress(..., {name}=THE SAME OBJECT, out=..., resume=True)"
                )
        hints = get_type_hints(cls)
        given = {n: v if isinstance(v, Settings) or n not in hints else value_of(hints[n], v, n) for n, v in data.items()}
        return cls.of(**given)


def _check(name: str, value: Any, kind: type, low: float | None, high: float | None) -> None:
    right = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if right and (low is None or value >= low) and (high is None or value <= high):
        return
    bounds = "" if low is None else f" of at least {low:,.16g}" if high is None else f" from {low:,.16g} to {high:,.16g}"
    meant = {bool: "True or False", int: f"a whole number{bounds}", float: f"a number{bounds}"}[kind]
    raise UserError(f"{name} has to be {meant}, got {value!r}")


def _plain(value: Any) -> Any:
    """The value as JSON holds it."""
    if isinstance(value, Settings):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        plain = [_plain(v) for v in value]
        return {OBJECT: f"a {type(value).__name__}"} if any(isinstance(v, dict) and OBJECT in v for v in plain) else plain
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return {OBJECT: getattr(value, "__qualname__", type(value).__name__)}
