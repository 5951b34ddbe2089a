"""Passes of many inputs through a traced network that need little memory: in parts, all of them through a layer before the next one.

A layer that is to be refitted has to see everything that it reads. A large network is run on a few inputs at a time all the same: only
what is still to be read is held, each part of it freed as it is read, and what a layer needs besides is needed for a part alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compress_env.surgery.graph import LayerGraph

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
WHOLE = 512 << 20
"""Bytes of activations up to which all inputs are run at once: nothing would be gained by parts."""
PART = 64 << 20
"""Bytes of activations of one part: about what a processor's caches hold, and what allocators reuse."""
ON_ACCELERATORS = 32
"""They hold so many times more, and a small part would not keep them busy."""


def part_size(graph: LayerGraph, inputs: int, device: torch.device) -> int:
    """How many of some inputs to run through the teacher of `graph` at once: all, or as many as make a part.

    Args:
        graph: Of the teacher; students need less.
        inputs: How many there are.
        device: Where they are run.
    """
    each = float(graph.view(frozenset()).activation_bytes(graph.full))
    room = 1 if device.type == "cpu" else ON_ACCELERATORS
    return inputs if inputs * each <= WHOLE * room else max(1, int(PART * room / each))


class Layerwise:
    """Runs a traced module on parts of a batch, all of them through a node before the next one.

    Attributes:
        module: The module.
        runs: One interpreter a part; its `env` holds the values that are still to be read.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.runs: list[fx.Interpreter] = []

    def run(self, parts: Sequence[Tensor]) -> None:
        """Run the module on parts `(n, ...)` of its only input."""
        first = fx.Interpreter(self.module)
        self.runs = [copy.copy(first) for _ in parts]
        for run, part in zip(self.runs, parts):
            run.env, run.args_iter = {}, iter([part])
        for node in self.module.graph.nodes:
            if node.op != "output":
                self.run_node(node)
        self.runs = []

    def run_node(self, node: fx.Node) -> None:
        """Compute the node for each part in turn."""
        for run in self.runs:
            run.env[node] = run.run_node(node)
            self._free(run, node)

    def arguments(self, node: fx.Node) -> list[Arguments]:
        """What the node is called with, for each part."""
        return [run.fetch_args_kwargs_from_env(node) for run in self.runs]

    def values(self, node: fx.Node, reader: fx.Node) -> list[Any]:
        """The values of a node, one a part, which are held no longer if `reader` is the last to read them."""
        return [run.env.pop(node) if node in run.user_to_last_uses.get(reader, []) else run.env[node] for run in self.runs]

    def replace(self, node: fx.Node, values: Sequence[Any]) -> None:
        """Take these as the values of a node, one a part."""
        for run, value in zip(self.runs, values):
            run.env[node] = value
            self._free(run, node)

    @staticmethod
    def _free(run: fx.Interpreter, node: fx.Node) -> None:
        for read in run.user_to_last_uses.get(node, []):
            run.env.pop(read, None)
