"""Whether two networks compute the same, and if not, from where on they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.surgery.graph import LayerGraph

TOLERANCE = 1e-5
"""Largest difference of two outputs, as a share of the largest output, or absolute if that is less than 1."""


class NotPreserved(UserError):
    """A larger network would not compute what the smaller one does; the message names the place."""


def random_inputs(graph: LayerGraph, module: nn.Module, seed: int = 0) -> Tensor:
    """Two inputs of the network's shape, normal deviates."""
    generator = torch.Generator().manual_seed(seed)
    like = next(module.parameters(), torch.zeros(()))
    return torch.randn(2, *graph.input_shape, generator=generator).to(like)


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, inputs: Tensor) -> float:
    """The largest difference of two networks' outputs, as a share of the largest output, or absolute if that is less than 1.

    Args:
        before: A network in evaluation mode.
        after: Another one that takes the same inputs.
        inputs: `(batch, ...)`.
    """
    first, second = before(inputs), after(inputs)
    return float((first - second).abs().max() / first.abs().max().clamp_min(1.0))


def check_preserved(before: fx.GraphModule, after: fx.GraphModule, inputs: Tensor, what: str) -> None:
    """Raises NotPreserved that says `what` was tried, and names the first tensor that is not what it was."""
    found = difference(before, after, inputs)
    if found <= TOLERANCE:
        return
    old, new = _results(before, inputs), _results(after, inputs)
    scale = {name: x.abs().max().clamp_min(1.0) for name, x in old.items()}
    differing = (
        name for name, x in old.items()
        if name in new and new[name].shape == x.shape and (new[name] - x).abs().max() > TOLERANCE * scale[name]
    )  # fmt: skip
    first = next(differing, "output")
    node = next(n for n in before.graph.nodes if n.name == first)
    place = str(node.target) if node.op == "call_module" else node.name
    raise NotPreserved(
        f"{what} would change what the network computes: its outputs by {found:.1e} of the largest, the first difference is at "
        f"{place!r}; choose another place"
    )


@torch.no_grad()
def _results(network: fx.GraphModule, inputs: Tensor) -> dict[str, Tensor]:
    recorder = _Recorder(network)
    recorder.run(inputs)
    return recorder.results


class _Recorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, only: Sequence[str] = ()) -> None:
        super().__init__(network)
        self.only, self.results = only, dict[str, Tensor]()

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor) and (not self.only or node.name in self.only):
            self.results[node.name] = result
        return result


@torch.no_grad()
def result_at(network: fx.GraphModule, name: str, inputs: Tensor) -> Tensor:
    """The result of the node called `name`."""
    recorder = _Recorder(network, [name])
    recorder.run(inputs)
    return recorder.results[name]
