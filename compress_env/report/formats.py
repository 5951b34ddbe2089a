"""Numbers and names as text, for terminals, tables and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from numbers import Real
from typing import Any, TypeGuard

DASH = "–"
SPACE = "\u00a0"
"""One at which no line breaks."""


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, Real) and math.isfinite(value)


def quantity(value: float | None, unit: str = "") -> str:
    """A number with three significant digits: "381K MACs", "1.09 MB", "2.31 ms"; an en dash if it is no number."""
    if not is_number(value):
        return DASH
    sizes = ((1e9, "G"), (1e6, "M"), (1e3, "K"))
    size, letter = next(((s, c) for s, c in sizes if abs(value) >= 0.9995 * s), (1, ""))
    scaled = value / size
    digits = max(0, 2 - int(math.floor(math.log10(abs(scaled) * 1.0005)))) if scaled else 0
    number = f"{scaled:.0f}" if size == 1 and value == int(value) else f"{scaled:.{digits}f}"
    if unit == "bytes":
        return f"{number} {letter}B"
    return f"{number}{letter} {unit}".rstrip()


def percent(value: float | None, digits: int = 2) -> str:
    """A share as "89.70 %"; an en dash if it is no number."""
    return f"{100 * value:.{digits}f}{SPACE}%" if is_number(value) else DASH


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with a fixed count of digits and a proper minus; an en dash if it is no number."""
    return f"{value:,.{digits}f}".replace("-", "−") if is_number(value) else DASH


def metric(value: float | None, digits: int = 2) -> str:
    """A task's metric: in percent if it lies in [0, 1], as accuracies do; else as a number."""
    return percent(value, digits) if is_number(value) and 0 <= value <= 1 else decimal(value, digits)


def text(value: Any) -> str:
    """A setting; an en dash if it is empty."""
    if value is None or value == "":
        return DASH
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def in_sentence(label: str) -> str:
    """A label within a sentence: "parameters", but "MACs"."""
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def unit_beside(label: str, unit: str) -> str:
    """The unit, if a label before the number does not name it already, as "MACs" does."""
    return "" if unit.lower() == label.lower() else unit


def fit_name(name: str, length: int) -> str:
    """The name in at most `length` characters; the end is kept, since it tells layers of one network apart."""
    return name if len(name) <= length else "…" + name[len(name) - length + 1 :]


def columns(table: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the head, in columns that are two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table as HTML, for notebooks.

    Args:
        head: Its first line.
        rows: The others.
        caption: A sentence above it.
    """
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{first}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
