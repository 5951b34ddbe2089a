"""`Call`: a node of the traced network as it was run, with the channel ids of what it read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

Ids = list[Tensor]
"""The channel ids of a tensor: a tensor of ids for each axis that runs over channels."""


@dataclass(frozen=True)
class Call:
    """A node of the traced network as it was run.

    Attributes:
        node: The node.
        result: Its result.
        values: The results of earlier nodes.
        ids: Channel ids of the tensors among them; where a result is a tuple or dictionary, even a nested one, so are its ids.
    """

    node: fx.Node
    result: Any
    values: Mapping[fx.Node, Any]
    ids: Mapping[fx.Node, Any]

    @property
    def name(self) -> str:
        """The name of the module, method or function that is called."""
        target = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", "")

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes it reads a tensor from."""
        return [i for i in self.node.all_input_nodes if isinstance(self.values.get(i), Tensor)]

    def shape(self, x: fx.Node) -> tuple[int, ...]:
        """The shape of a tensor that it reads."""
        return tuple(self.values[x].shape)

    def argument(self, position: int, keyword: str, default: Any = None) -> Any:
        """An argument as it is written in the graph, given by position or by keyword."""
        args = self.node.args
        return args[position] if len(args) > position else self.node.kwargs.get(keyword, default)

    def evaluated(self, argument: Any) -> Any:
        """An argument with values in place of nodes."""
        return fx.node.map_arg(argument, lambda n: self.values[n])

    def again(self, instead: Mapping[fx.Node, Tensor]) -> Any:
        """The result of the same function or method with other tensors in place of some that it reads."""
        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), lambda n: instead.get(n, self.values[n]))
        target = self.node.target
        if not isinstance(target, str):
            return target(*args, **kwargs)
        method = "reshape" if target == "view" else target  # ids lie elsewhere in memory
        return getattr(args[0], method)(*args[1:], **kwargs)


def nothing(result: Any) -> Any:
    """The ids of a result whose channels all stay: of a tensor, or in tuples and dictionaries as there."""
    if isinstance(result, Mapping):
        return {key: nothing(part) for key, part in result.items()}
    return tuple(map(nothing, result)) if isinstance(result, (tuple, list)) else []


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, or all tensors of ids, in whatever tuples, lists and dictionaries they are."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def axes_of(where: int | Sequence[int], rank: int) -> set[int]:
    """The axes that an argument `dim` names, counted from the front."""
    return {d % rank for d in ([where] if isinstance(where, int) else where)}
