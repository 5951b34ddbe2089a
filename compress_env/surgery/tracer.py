"""A network as a graph, whatever it is: parts that cannot be followed become one opaque layer each, with a warning."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.surgery.graph import WHOLE
from compress_env.surgery.leaves import Capture, input_names, is_leaf
from compress_env.surgery.measure import shared_copy
from compress_env.surgery.network import Network
from compress_env.surgery.paths import enclosing
from compress_env.surgery.recorded import recorded
from compress_env.surgery.symbolic import symbolic

OURS = ("/torch/", "/compress_env/surgery/")
"""Parts of the paths of files that are not the network's."""


class NotTraced(UserWarning):
    """Part of a network cannot be followed, so that no layer in it can be removed."""


class _Different(Exception):
    """A graph computes something else than the network."""


def trace_modules(
    model: nn.Module, examples: tuple[Tensor, ...], regions: Collection[str] = ()
) -> tuple[fx.GraphModule, set[str]]:
    """The traced network, and the names of the layers that could not be followed.

    Args:
        model: The network.
        examples: Its inputs, two examples in a batch.
        regions: Names of modules that are not to be followed.

    Raises:
        UserError: If it does not run or returns no single tensor.
    """
    _run(shared_copy(model), examples)
    opaque = set(regions)
    while WHOLE not in opaque:
        error, path = Exception(), list[str]()
        for way in (symbolic, recorded):
            path.clear()
            try:
                capture = way(model, examples, opaque, path)
                _compare(shared_copy(model), capture, examples, path)
                return capture.traced, opaque
            except Exception as found:  # noqa: BLE001 - what a network raises on symbols is up to its author
                error = found
        while path and is_leaf(model.get_submodule(path[-1]), path[-1], opaque):
            path.pop()
        warn_not_traced(model, error, path[-1:])
        if not path:
            break
        opaque.add(path[-1])
    return whole(model, len(examples)), {WHOLE}


def whole(model: nn.Module, inputs: int) -> fx.GraphModule:
    """The network as one opaque layer."""
    graph = fx.Graph()
    graph.output(graph.call_module(WHOLE, tuple(graph.placeholder(name) for name in input_names(model, inputs))))
    return Network({WHOLE: model}, graph)


def _run(model: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raises UserError if the network does not run or returns no single tensor."""
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


def _compare(model: nn.Module, capture: Capture, examples: tuple[Tensor, ...], path: list[str]) -> None:
    """Raises _Different if the graph computes something else than the network; `path` then names the module that differs."""
    for count in (2, 3):
        inputs = _random(model, examples, count)
        with torch.no_grad():
            expected = model(*_clones(inputs))
            if _equal(capture.traced.forward(*_clones(inputs)), expected) or not _equal(
                model(*_clones(inputs)), expected
            ):
                continue  # a network that is random cannot be compared
            path[:] = _different_module(model, capture, inputs)
        raise _Different(f"what was traced computes something else on {count} examples")


def _random(model: nn.Module, examples: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Inputs in which no two numbers are alike, if the network takes such, since many functions of zeros are equal."""
    generator = torch.Generator().manual_seed(count)
    alike = tuple(x[:1].expand(count, *x.shape[1:]) for x in examples)
    inputs = tuple(torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in alike)
    try:
        with torch.no_grad():
            model(*_clones(inputs))
    except Exception:  # noqa: BLE001 - it may look at them
        return alike
    return inputs


def _clones(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies of inputs, which a network may write to."""
    return tuple(x.clone() for x in inputs)


def _different_module(model: nn.Module, capture: Capture, inputs: tuple[Tensor, ...]) -> list[str]:
    """The name of the innermost module that computes something else than its part of the graph, if it is one."""
    returned: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(*called: Any) -> None:
            if isinstance(called[-1], Tensor):
                returned.append((name, called[-1].clone()))

        return hook

    names = {name for name, _ in capture.ends}
    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in sorted(names)]
    values = _Values(capture.traced)
    try:
        model(*_clones(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    values.run(*_clones(inputs))
    for (name, node), (called, value) in zip(capture.ends, returned):
        if name != called or not _equal(values.found.get(node), value):
            return [*reversed(enclosing(name)), name]
    return []


class _Values(fx.Interpreter):
    """Runs a graph and keeps what its nodes gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        self.found[node] = result.clone() if isinstance(result, Tensor) else result
        return result


def _equal(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def warn_not_traced(model: nn.Module, error: Exception, names: Collection[str]) -> None:
    """Warn that a module, or without a name the whole network, is one layer from here on."""
    what, rest = type(model).__name__, "no layer of it can be removed"
    for name in set(names) - {WHOLE}:
        what, rest = f"{name} ({type(model.get_submodule(name)).__name__})", "its layers cannot be removed"
    message = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(NotTraced(f"{what} cannot be traced ({_place(error)}: {message}); {rest}"), stacklevel=4)


def _place(error: Exception) -> str:
    """File and line of the network's own code where the error came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(p in f.filename for p in OURS)]
    last = frames[-1] if frames else None
    return f"{last.filename.rpartition('/')[2]}:{last.lineno}" if last else type(error).__name__
