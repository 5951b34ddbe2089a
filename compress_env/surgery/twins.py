"""Operations in place, and their twins out of place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F


class Twin(NamedTuple):
    """The same operation out of place."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def twin_of(node: fx.Node) -> Twin | None:
    """The out-of-place twin of an operation in place, None if it is none or has no twin."""
    target: Any = node.target
    name = name_of(node)
    if node.op == "call_method":
        own = name.endswith("_") and not name.endswith("__") and callable(getattr(Tensor, name[:-1], None))
        return Twin(name[:-1], node.args, node.kwargs) if own else None
    if node.op != "call_function":
        return None
    if "out" in node.kwargs:
        return Twin(target, node.args, {k: v for k, v in node.kwargs.items() if k != "out"})
    if hasattr(operator, f"__{name}__") and name.startswith("i") and getattr(operator, name, None) is target:
        plain = getattr(operator, name[1:], None) or getattr(operator, f"{name[1:]}_", None)
        return Twin(plain, node.args, node.kwargs) if plain else None
    if name.endswith("_"):
        plain = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
        return Twin(plain, node.args, node.kwargs) if plain else None
    return _without_flag(node, target)


def _without_flag(node: fx.Node, target: Callable[..., Any]) -> Twin | None:
    """A function that is told to work in place, told otherwise."""
    try:
        given = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a built-in one, which has no such argument
        return None
    if given.arguments.get("inplace") is not True:
        return None
    given.arguments["inplace"] = False
    return Twin(target, given.args, given.kwargs)


def name_of(node: fx.Node) -> str:
    """The name of the method or function that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
