"""Budgets as users write them: limits on resources, read from numbers and strings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np

from compress_env.errors import UnknownName, UserError
from compress_env.resources import RESOURCES
from compress_env.resources.base import AnyResource, MeasuredResource

_MULTIPLES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "%": 0.01}
ROUNDING = 1e-15
"""Relative error of a share, as a text and times the teacher's usage, at most."""


@dataclass(frozen=True)
class Limit:
    """A limit as given.

    Attributes:
        value: A share of the teacher's usage, or an absolute value in the resource's unit.
        share: Which of them.
    """

    value: float
    share: bool

    def absolute(self, teacher: float) -> float:
        """The limit in the resource's unit, given the teacher's usage; a share that is a whole number but for rounding is that."""
        if not self.share:
            return self.value
        limit = self.value * teacher
        return float(round(limit)) if abs(limit - round(limit)) <= ROUNDING * limit else limit


def parse_limit(value: float | int | str, resource: AnyResource) -> Limit:
    """The limit that a number or a text stands for.

    Args:
        value: At most 1 is a share of the teacher, more is absolute; texts may say which: "50%", "300K", "2.5ms", "1MiB".
        resource: What is limited; it says which units there are beside K, M, G and %.

    Returns:
        The limit, in the resource's unit if it is absolute.

    Raises:
        UserError: It is no positive number, or the unit is unknown.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?\d+)?)\s*(\D*?)\s*", value)
        multiple = _multiple(match[2], resource) if match else None
        if match is None or multiple is None:
            own = list(dict.fromkeys([resource.unit, *resource.multiples]))
            raise UserError(f"cannot read the budget {value!r} of {resource.name}; examples: 0.5, 50%, 300K, 20M"
                            f"; units: {', '.join(own)}")  # fmt: skip
        number, unit = float(match[1]), match[2]
        limit = Limit(number * multiple, unit == "%" or (unit == "" and number <= 1))
    elif isinstance(value, Real) and not isinstance(value, bool):
        limit = Limit(float(value), bool(value <= 1))
    else:
        raise UserError(f"a budget is a number or a text, got {value!r} for {resource.name}; examples: 0.5, '50%', '300K'")
    if not limit.value > 0 or not np.isfinite(limit.value):
        raise UserError(f"a budget has to be positive, got {value!r} for {resource.name}")
    return limit


def _multiple(unit: str, resource: AnyResource) -> float | None:
    """What one of `unit` is in the resource's own unit, which is written as it is: "mJ" and "MJ" differ. None if it is unknown."""
    if unit == resource.unit:
        return 1.0
    if unit == "m" and isinstance(resource, MeasuredResource):  # a million, or the beginning of ms
        return None
    known = _MULTIPLES | {name.upper(): each for name, each in resource.multiples.items()}
    return known.get(unit.upper())


def parse_budget(budget: Mapping[str, object]) -> dict[str, tuple[Limit, Limit]]:
    """The limits of a budget, by the names of its resources.

    Args:
        budget: By a resource's name, `module:attribute` or `file.py:attribute`, a limit as `parse_limit` reads it, or a range: a pair
            `[low, high]` or a text `low..high`.

    Returns:
        The lowest and the highest limit of each resource, which are the same where one value was given.

    Raises:
        UserError: The budget is empty, names what is no resource, or a limit is none.
    """
    if not isinstance(budget, Mapping):
        raise UserError(f'a budget is a mapping such as {{"macs": 0.5}}, got {budget!r}')
    if not budget:
        raise UserError(
            f"the budget is empty; give at least one of {', '.join(RESOURCES.names())}, for example macs=0.5"
        )
    parsed: dict[str, tuple[Limit, Limit]] = {}
    for spec, value in budget.items():
        try:
            resource = RESOURCES.get(spec)
        except UnknownName as error:
            raise UnknownName(f"budget: {error}") from None
        name = resource.name
        if name in parsed:
            raise UserError(f"budget: {name} is given twice")
        if isinstance(value, str) and ".." in value:
            value = value.split("..", 1)
        pair = value if isinstance(value, (list, tuple)) else (value, value)
        if len(pair) != 2:
            raise UserError(f"budget: {name} needs a value or a pair [low, high], got {value!r}")
        low, high = (parse_limit(v, resource) for v in pair)
        if low.share != high.share or low.value > high.value:
            raise UserError(f"budget: {name}: {value!r} is not a range from low to high in one unit")
        parsed[name] = (low, high)
    return parsed
