"""The first way to capture a network: `torch.fx` runs it on symbols, so that sizes which it reads are computed anew in students."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from compress_env.surgery.leaves import Capture, input_names, is_leaf, is_wrapper
from compress_env.surgery.measure import shared_copy
from compress_env.surgery.network import Network


def symbolic(model: nn.Module, examples: tuple[torch.Tensor, ...], opaque: set[str], path: list[str]) -> Capture:
    """The network as a graph, in which the modules of these names are one layer each.

    Raises whatever the network makes of symbols; `path` then holds the names of the modules that it was in.
    """
    tracer, own = (
        _Tracer(input_names(model, len(examples)), opaque, path),
        shared_copy(model),
    )  # forward may set attributes
    return Capture(Network(own, tracer.trace(own)), tracer.ends)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # buffers stay what they are, in place of constants made from them

    def __init__(self, inputs: list[str], opaque: set[str], path: list[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.inputs, self.opaque, self.path = inputs, opaque, path
        self.ends: list[tuple[str, fx.Node]] = []

    def create_args_for_root(self, root_fn: Any, *_: Any, **__: Any) -> tuple[Any, list[Any]]:
        """Symbols for the inputs alone: other arguments of the network keep their defaults."""
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.inputs)]

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if target == "__setitem__":  # the other way to capture writes it out of place, as it does x[...] = ...
            raise TypeError("it writes to a part of a tensor")
        return super().create_node(kind, target, *args, **kwargs)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_leaf(module, name, self.opaque)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if is_wrapper(module):
            return module.get_submodule("module")(*args, **kwargs)
        name = self.path_of_module(module)
        self.path.append(name)
        result = super().call_module(module, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.ends.append((name, result.node))
        self.path.pop()  # not in a `finally`: after an error, the path says where it was
        return result
