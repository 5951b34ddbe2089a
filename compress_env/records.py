"""Dataclasses from what JSON holds, with every value checked against its annotation: a file may be damaged, or of another version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63
"""Whole numbers are smaller, as those of tensors are."""


class Damaged(ValueError):
    """A value that is missing, unknown, of another type, or not finite; the message names it."""


def record(kind: type[T], data: Any, **given: Any) -> T:
    """A dataclass made of a JSON object.

    Lists become tuples where the annotation says so, and dataclasses within are made likewise, or by their own `from_json`.

    Args:
        kind: The dataclass.
        data: The object.
        given: Fields that are made otherwise; `data` need not have them.

    Raises:
        Damaged: For a field that is missing or unknown, a value of another type, and a number that is not finite.
    """
    if not isinstance(data, Mapping):
        raise Damaged(f"it is {_short(data)}, not an object")
    hints = _hints(kind)  # type: ignore[arg-type]
    for name in data:
        if name not in hints:
            raise Damaged(f"{name!r} is unknown")
    found = dict(given)
    for name, (hint, optional) in hints.items():
        if name in given:
            continue
        if name in data:
            found[name] = value_of(hint, data[name], name)
        elif not optional:
            raise Damaged(f"{name!r} is missing")
    return kind(**found)


def value_of(hint: Any, value: Any, name: str) -> Any:
    """A value of JSON as its annotation has it. Raises Damaged, naming it, if it is none."""
    kind, arguments = _parts_of(hint)
    if hint is Any:
        return value
    if kind in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return value_of(next(a for a in arguments if a is not NoneType), value, name)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise Damaged(f"{name!r} is {_short(value)}, not a finite number")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= LARGEST:
            raise Damaged(f"{name!r} is {_short(value)}, not a whole number")
        return value
    if hint in (str, bool):
        if not isinstance(value, hint):
            raise Damaged(f"{name!r} is {_short(value)}, not {'a text' if hint is str else 'true or false'}")
        return value
    if isinstance(kind, type) and issubclass(kind, Mapping):
        if not isinstance(value, Mapping):
            raise Damaged(f"{name!r} is {_short(value)}, not an object")
        return {key: value_of(arguments[1], part, f"{name}.{key}") for key, part in value.items()}
    if kind is tuple or isinstance(kind, type) and issubclass(kind, Sequence):
        return tuple(_parts(arguments, value, name))
    if hasattr(hint, "from_json"):
        return hint.from_json(value)
    if is_dataclass(hint) and isinstance(hint, type):
        return record(hint, value)
    raise TypeError(f"a record cannot have {name!r}, which is annotated {hint}")


@cache
def _parts_of(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The generic type of an annotation and its arguments, which are looked up for every value of every trial."""
    return get_origin(hint), get_args(hint)


def _parts(arguments: tuple[Any, ...], value: Any, name: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Damaged(f"{name!r} is {_short(value)}, not a list")
    if len(arguments) == 1 or arguments[1] is Ellipsis:
        return [value_of(arguments[0], part, f"{name}[{i}]") for i, part in enumerate(value)]
    if len(value) != len(arguments):
        raise Damaged(f"{name!r} has {len(value)} entries, not {len(arguments)}")
    return [value_of(hint, part, f"{name}[{i}]") for i, (hint, part) in enumerate(zip(arguments, value))]


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


@cache
def _hints(kind: type) -> dict[str, tuple[Any, bool]]:
    """For each field its annotation, and whether it has a default."""
    hints = get_type_hints(kind)
    return {
        f.name: (hints[f.name], f.default is not MISSING or f.default_factory is not MISSING)
        for f in fields(kind)
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
