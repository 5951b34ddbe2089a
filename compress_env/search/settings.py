"""Settings of an agent's own, checked against the types that its factory declares."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from compress_env.errors import UserError
from compress_env.extras import need
from compress_env.registry import load_attribute

POLICIES = ("start", "file")
"""Settings of this package's agents that are files of policies."""
NUMBERS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}


def check_settings(agent: object, factory: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Look whether a factory takes these settings, before anything is made.

    Args:
        agent: What messages call the agent.
        factory: Takes an objective, evaluations and a seed before them.
        settings: By name.

    Raises:
        UserError: If it lacks one that it needs, has none of a name, or a value is of another type than the factory declares; and if
            TensorBoard is asked for, which is not installed, or a saved policy, which cannot be read.
    """
    try:
        inspect.signature(factory).bind(None, 1, 0, **settings)
    except (TypeError, ValueError) as error:  # ValueError: a built-in that does not say what it takes
        raise UserError(f"the agent {agent!r} cannot be made with these settings: {error}") from error
    for name, kind in _hints(factory).items():
        if name in settings and not _fits(settings[name], kind):
            raise UserError(f"the agent {agent!r}: {name} has to be {_text(kind)}, got {settings[name]!r}")
    if settings.get("tensorboard_log"):
        need("tensorboard_log", "tensorboard")
    if str(getattr(factory, "__module__", "")).startswith("compress_env.agents."):
        for name in POLICIES:
            if isinstance(settings.get(name), str):
                load_attribute("compress_env.agents.saved:load_policy", "policy")(settings[name])


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(vars(factory).get("__init__", factory) if isinstance(factory, type) else factory)
    except (NameError, TypeError, AttributeError):  # a user's own may declare anything
        return {}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a simple type; of any other type, each value is taken."""
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(kind) is tuple and ... not in get_args(kind):
        parts = get_args(kind)
        return isinstance(value, Sequence) and len(value) == len(parts) and all(map(_fits, value, parts))
    return isinstance(value, kind) if kind in NUMBERS else True


def _text(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_text, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} values, each {_text(get_args(kind)[0])}"
    return NUMBERS.get(kind, str(kind))
