"""The tables from types of layers, and from functions, to their rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from compress_env.surgery.call import Call
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.base import Rule

R = TypeVar("R", bound=type[Rule])
FunctionRule = Callable[[ChannelFlow, Call], Any]
"""Follows a function: gives the channel ids of its result."""

_RULES: dict[type | str, Rule] = {}
_FUNCTIONS: dict[object, FunctionRule] = {}
_FOUND: dict[type, Rule] = {}
_UNKNOWN = Rule()
_UNKNOWN.leaf = False


def register_rule(*layers: type | str) -> Callable[[R], R]:
    """A decorator that makes a `Rule` subclass the rule of these types of layers and of types derived from them.

    Args:
        layers: Types, or where a type is not to be imported, its module and name: `"torchvision.ops.misc.Permute"`. The nearest
            of a layer's base classes decides.
    """

    def enter(rule: R) -> R:
        _RULES.update(dict.fromkeys(layers, rule()))
        _FOUND.clear()
        return rule

    return enter


def register_function(*functions: object) -> Callable[[FunctionRule], FunctionRule]:
    """A decorator that makes a function the rule of functions and methods, given by name or as they are."""

    def enter(rule: FunctionRule) -> FunctionRule:
        _FUNCTIONS.update(dict.fromkeys(functions, rule))
        return rule

    return enter


def rule_of(module: nn.Module | None) -> Rule:
    """The rule of a layer; that of an unknown one if its type has none, or for None."""
    kind = type(module)
    if kind not in _FOUND:
        names = (key for t in kind.__mro__ for key in (t, f"{t.__module__}.{t.__qualname__}"))
        _FOUND[kind] = next((_RULES[key] for key in names if key in _RULES), _UNKNOWN)
    return _FOUND[kind]


def types_of(family: type[Rule]) -> list[type]:
    """The types of layers whose rule is of this family."""
    return [key for key, rule in _RULES.items() if isinstance(key, type) and isinstance(rule, family)]


def rule_names() -> list[str]:
    """Names of the rules that layers have, sorted."""
    return sorted({type(rule).__name__ for rule in _RULES.values()})


def function_rule(call: Call) -> FunctionRule:
    """The rule of the function or method that is called."""
    target = call.node.target
    return _FUNCTIONS.get(target) or _FUNCTIONS.get(call.name) or ChannelFlow.opaque
