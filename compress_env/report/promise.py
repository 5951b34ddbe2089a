"""A promised accuracy in words: what was asked for, what holds, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence

from compress_env.report.formats import DASH, decimal, in_sentence, metric, percent
from compress_env.search.promise import Attempt, Promise
from compress_env.search.result import ResourceName
from compress_env.tasks.paired import Drop

HEAD = ("Budget", "Bracket", "Trial", "Usage", "Drop, points", "95 % bound", "Holds")
"""Of the table of `rows`."""


def sentences(promise: Promise, name: str) -> list[tuple[str, str]]:
    """What is promised, and what that is worth: a label and a text each.

    Args:
        promise: It.
        name: The main metric's.
    """
    label, asked = in_sentence(ResourceName.of(promise.resource).label), promise.max_accuracy_drop
    found, test = promise.validation, promise.test
    told = [
        ("asked", f"at most {asked:g} points of {name} lost with as few {label} as can be: {percent(promise.usage, 1)} of the "
         "teacher's"),
        ("point", f"{_drop(found)} on {found.examples} validation examples, by which students of different size were told apart and "
         f"nothing else was chosen: {_holds(found.within(asked))}"),
        ("bound", f"with {percent(found.confidence, 0)} confidence at most {decimal(found.bound, 2)} points on further examples: "
         f"{_holds(promise.bound_holds)}"),
    ]  # fmt: skip
    if all(a.holds for a in promise.attempts):
        told.append(("range", "the smallest budget that was tried holds; a range that begins lower may have a smaller student"))
    if test:
        told.append((
            "test", f"{_drop(test)} on {test.examples} test examples, on which no choice depends: {_holds(test.within(asked))}; bound "
            f"{decimal(test.bound, 2)} points: {_holds(test.surely_within(asked))}",
        ))  # fmt: skip
    return told


def rows(attempts: Sequence[Attempt]) -> list[list[str]]:
    """A row an attempt, under `HEAD`."""
    return [
        [
            percent(a.budget, 1), f"{percent(a.low, 1)} to {percent(a.high, 1)}", DASH if a.trial is None else str(a.trial),
            percent(a.usage, 1), decimal(a.drop.points if a.drop else None, 2), decimal(a.drop.bound if a.drop else None, 2),
            "yes" if a.holds else "no",
        ]
        for a in attempts
    ]  # fmt: skip


def _drop(found: Drop) -> str:
    """What was measured."""
    return f"{metric(found.student)}, teacher {metric(found.teacher)}, a drop of {decimal(found.points, 2)} points"


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"
