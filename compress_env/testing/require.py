"""How suites say what is wrong: an AssertionError with a sentence, also under `python -O`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def require(holds: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence unless it holds."""
    if not holds:
        raise AssertionError(sentence)


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Whatever is raised inside becomes an AssertionError that says which call raised it."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 - the part under test may raise anything
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}") from error


def number(value: Any, what: str) -> float:
    """The value as a float. Raises AssertionError if it is no number, or not finite."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise AssertionError(f"{what} gave {value!r}, which is no number") from None
    require(math.isfinite(found), f"{what} gave {found}, which is not finite")
    return found


def named(kind: str, part: Any) -> str:
    """A name for messages: `resource 'depth'`, from a name, an object's `name`, or the name of a function or class."""
    if isinstance(part, str):
        return f"{kind} {part!r}"
    own = getattr(part, "name", "") or getattr(part, "__name__", "") or type(part).__name__
    return f"{kind} {str(own)!r}"
