"""The objective of a run folder, made again with what was measured there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.errors import InvalidPlan, UserError
from compress_env.objective import Objective
from compress_env.own_code import Trust
from compress_env.problem import Measured
from compress_env.records import Damaged, value_of
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec

T = TypeVar("T")


def objective_of(folder: RunFolder, progress: bool = True, *, trust: Trust = False, **changed: Any) -> Objective:
    """The objective that a run folder was made with; data is loaded when it is first asked for.

    Args:
        folder: The run folder.
        progress: Whether to show on standard error how far it is.
        trust: Whether to run code that the folder names, such as a reward in a file: True, or the places of what may be run
            (`["mine.py:reward"]`).
        changed: Fields of `EnvironmentSpec` that are to be others.

    Raises:
        UserError: If a part of it was a Python object, which a file cannot hold, or names code that is not trusted.
    """
    environment, _ = folder.spec(trust)
    environment = replace(environment, **changed)
    return objective_in(folder, environment, progress)


def objective_in(folder: RunFolder, environment: EnvironmentSpec, progress: bool) -> Objective:
    """An objective with what was measured in a folder."""
    measured, sensitivities = _measured(folder), _sensitivities(folder)
    try:
        return Objective(environment, measured=measured, sensitivities=sensitivities, progress=progress)
    except InvalidPlan as error:
        raise UserError(f"{folder.path / 'problem.json'}: {error}; delete it, and it is made again") from error
    except Damaged as error:
        raise UserError(f"{folder.path / 'sensitivities.json'}: {error}; delete it, and it is made again") from error


def _measured(folder: RunFolder) -> Measured | None:
    """The measurements that a run keeps, or None if it has none; they are made again then, which takes images."""
    return kept(folder, "problem.json", Measured.from_json)


def _sensitivities(folder: RunFolder) -> Sensitivities | None:
    """The sensitivities that a run keeps, or None."""
    return kept(folder, "sensitivities.json", Sensitivities.from_json)


def kept(folder: RunFolder, name: str, read: Callable[[Any], T]) -> T | None:
    """What `read` makes of a JSON file of a folder, None if it is not there. Raises UserError for a damaged one."""
    if not (folder.path / name).is_file():
        return None
    data = folder.read(name)
    try:
        return read(value_of(Mapping[str, Any], data, name))
    except (Damaged, InvalidPlan) as error:
        raise UserError(f"{folder.path / name} is damaged ({error}); delete it, and it is made again") from None
