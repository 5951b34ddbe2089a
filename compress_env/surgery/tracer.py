"""A traced copy of a network, whatever it is: parts that cannot be followed become one opaque layer each, with a warning."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.surgery.graph import WHOLE
from compress_env.surgery.rules import rule_of


class NotTraced(UserWarning):
    """Part of a network cannot be followed, so that no layer in it can be removed."""


class _Tracer(fx.Tracer):
    def __init__(self, opaque: set[str]) -> None:
        super().__init__()
        self.opaque = opaque
        self.path: list[str] = []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.opaque or rule_of(module).leaf or super().is_leaf_module(module, name)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(module)
        self.path.append(name)
        result = super().call_module(module, forward, args, kwargs)
        self.path.pop()  # not in a `finally`: after an error, the path says where it was
        return result


def trace_modules(model: nn.Module, examples: tuple[Tensor, ...]) -> tuple[fx.GraphModule, fx.Node, set[str]]:
    """The traced network, the node of its logits, and the names of the layers that could not be followed.

    Raises UserError if it does not run or returns no single tensor.
    """
    try:
        with torch.no_grad():
            result = model(*examples)
    except Exception as error:  # noqa: BLE001 - anything may go wrong in a user's network
        shapes = ", ".join(str(tuple(x.shape)) for x in examples)
        raise UserError(f"{type(model).__name__} does not run on inputs of shape {shapes}: {error}") from error
    if not isinstance(result, Tensor):
        raise UserError(
            f"{type(model).__name__} returns {type(result).__name__}; a teacher has to return one tensor of logits"
        )
    opaque: set[str] = set()
    while True:
        tracer = _Tracer(opaque)
        try:
            graph = tracer.trace(model)
            break
        except Exception as error:  # noqa: BLE001 - control flow on a proxy raises whatever the network makes of it
            if not tracer.path:
                where = _place(error)
                warnings.warn(
                    NotTraced(
                        f"{type(model).__name__} cannot be traced ({where}: {error}); no layer of it can be removed"
                    ),
                    stacklevel=3,
                )
                return *_whole(model, len(examples)), {WHOLE}
            name = tracer.path[-1]
            opaque.add(name)
            warnings.warn(
                NotTraced(
                    f"{name} ({type(model.get_submodule(name)).__name__}) cannot be traced ({_place(error)}: {error}); "
                    "its layers cannot be removed"
                ),
                stacklevel=3,
            )
    traced = fx.GraphModule(model, graph)
    output = next(n for n in graph.nodes if n.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise UserError(f"{type(model).__name__} returns a constant")
    return traced, output, opaque


def _place(error: Exception) -> str:
    """File and line of the network's own code where the error came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    last = frames[-1] if frames else None
    return f"{last.filename.rpartition('/')[2]}:{last.lineno}" if last else type(error).__name__


def _whole(model: nn.Module, inputs: int) -> tuple[fx.GraphModule, fx.Node]:
    """The network as one opaque layer."""
    graph = fx.Graph()
    output = graph.call_module(WHOLE, tuple(graph.placeholder(f"input_{i + 1}") for i in range(inputs)))
    graph.output(output)
    return fx.GraphModule({WHOLE: model}, graph), output
