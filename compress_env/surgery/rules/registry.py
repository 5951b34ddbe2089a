"""The tables from types of layers, and from functions, to their rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
_HARMLESS = ("__init__", "__repr__", "extra_repr", "reset_parameters", "__setstate__", "__getstate__")
"""Methods that make no difference to what a layer computes."""
_UNKNOWN = Rule()
_UNKNOWN.leaf = False
_LEFT_ALONE = Rule()
"""One node of the network, of which nothing is known."""
_MARK = "left_alone"


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
    """The rule of a layer: that of an unknown one if its type has none, or for None, and of a closed one if it is left alone."""
    kind = type(module)
    if kind not in _FOUND:
        _FOUND[kind] = next((rule for _, rule in _known(kind)), _UNKNOWN)
    return _LEFT_ALONE if module is not None and _MARK in module.__dict__ else _FOUND[kind]


def leave_alone(module: nn.Module) -> None:
    """Have a layer keep its widths, whatever its type."""
    module.__dict__[_MARK] = True


def differs(module: nn.Module) -> bool:
    """Whether the type of a layer is derived from the one that its rule is for, and may compute something else."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn."):
        return False
    base, _ = next(_known(kind), (kind, None))
    between = kind.__mro__[: kind.__mro__.index(base)]
    return any(callable(value) and name not in _HARMLESS for t in between for name, value in vars(t).items())


def _known(kind: type) -> Iterator[tuple[type, Rule]]:
    """The types that a type is derived from, the nearest first, that have a rule, with that."""
    for t in kind.__mro__:
        for key in (t, f"{t.__module__}.{t.__qualname__}"):
            if key in _RULES:
                yield t, _RULES[key]


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
