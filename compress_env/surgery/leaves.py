"""What both ways to capture a network share: which modules are one layer each, and how the inputs are called."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import fx, nn

from compress_env.surgery.rules import rule_of

_FX = fx.Tracer()


@dataclass(frozen=True)
class Capture:
    """A network as a graph.

    Attributes:
        traced: The graph with the network's own parameters and modules, under the names that they have there, and with constants
            that the network makes.
        ends: Modules that were run through, in the order in which they ended, with the node of what each returned.
    """

    traced: fx.GraphModule
    ends: list[tuple[str, fx.Node]]


def is_leaf(module: nn.Module, name: str, opaque: set[str]) -> bool:
    """Whether a module is one layer, its `forward` not looked into."""
    return name in opaque or rule_of(module).leaf or _FX.is_leaf_module(module, name)


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module computes what the one in it does, on several devices."""
    return type(module).__module__.startswith("torch.nn.parallel.")


def input_names(model: nn.Module, count: int) -> list[str]:
    """The names that the network's `forward` gives to its first `count` arguments."""
    named = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return [named[i] if i < len(named) else f"input_{i + 1}" for i in range(count)]
