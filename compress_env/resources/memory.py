"""Memory of inference: weights and buffers, plus the largest sum of activations alive at once, in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress_env.resources.base import RESOURCES, Resource
from compress_env.surgery.call import tensors
from compress_env.surgery.graph import PrunedView


@RESOURCES.register("memory")
class Memory(Resource):
    """Bytes of a network for one example: of weights in float32, of buffers and activations by their types."""

    label, unit, vectorised = "Peak memory", "bytes", True
    multiples = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

    def predict(self, view: PrunedView, widths: np.ndarray) -> float | np.ndarray:
        """Bytes of a plan for one example."""
        return view.weight_bytes(widths) + view.activation_bytes(widths)

    def count(self, student: fx.GraphModule, example: Tensor) -> float:
        """Bytes of a traced module for one example, which runs through it.

        Weights and buffers as they are, and the peak of the tensors that the graph holds at once in eager mode, each freed after
        its last use; views own no memory. It is what PyTorch's allocator holds after an operator (`tests/test_latency.py` compares
        with its profiler). What an operator needs while it runs is not in it: a 3x3 convolution of a small input may unfold it to
        nine times its size. Nor is what ONNX Runtime and torch.compile do, which reuse memory.
        """
        held = [*student.parameters(), *student.buffers()]
        weights = sum(t.numel() * t.element_size() for t in held)
        peak = _Peak(student, {t.untyped_storage()._cdata for t in held})
        with torch.no_grad():
            peak.run(example.clone())  # a part of a batch holds the whole of it
        return float(weights + peak.bytes)


class _Peak(fx.Interpreter):
    """Runs a graph and notes the largest sum of storages alive while a node runs, but for those that are `held` anyway."""

    def __init__(self, module: fx.GraphModule, held: set[int]):
        super().__init__(module)
        self.held, self.bytes = held, 0

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        alive: dict[int, int] = {}
        for value in [result, *self.env.values()]:
            for tensor in tensors(value):
                storage = tensor.untyped_storage()
                alive[storage._cdata] = storage.nbytes()
        self.bytes = max(self.bytes, sum(n for key, n in alive.items() if key not in self.held))
        return result
