"""Memory of inference: weights and buffers, plus the largest sum of activations alive at once, in bytes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress_env.surgery.graph import Reduced

NAME, UNIT = "memory", "bytes"
BYTES = 4  # float32


def predict(network: Reduced, widths: np.ndarray) -> float:
    """Bytes of the network with these widths `(groups,)` for one example, with float32 weights and activations."""
    if "memory" not in network.__dict__:
        layers = network.layers
        network.__dict__["memory"] = (
            np.array([op.elements for op in network.ops], float),
            np.array([layer.buffers_per_channel for layer in layers], float),
            float(sum(layer.fixed_bytes for layer in layers)),
        )
    from compress_env.resources import params

    elements, buffers, fixed = network.__dict__["memory"]
    channels, constant = network.op_channels
    activations = (network.liveness @ (elements * (channels @ widths + constant))).max() * BYTES
    matrix, outputs = network.layer_outputs
    return float(params.predict(network, widths) * BYTES + buffers @ (matrix @ widths + outputs) + fixed + activations)


def count(model: nn.Module, example: Tensor) -> float:
    """Bytes of a traced module (a student, or a teacher built with the empty plan) for one example.

    Weights and buffers as they are, and the peak of the tensors that the graph holds at once in eager mode, each freed after
    its last use; views own no memory. What an operator allocates inside itself is not seen.
    """
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    shadow = copy.deepcopy(model).to("meta")
    peak = _Peak(shadow)
    with torch.no_grad():
        peak.run(example[:1].to("meta"))
    return float(weights + peak.bytes)


class _Peak(fx.Interpreter):
    """Runs a graph without computing and notes the largest sum of storages alive while a node runs."""

    bytes = 0

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        alive = {}
        for value in [result, *self.env.values()]:
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                storage = value.untyped_storage()
                alive[storage._cdata] = storage.nbytes()
        self.bytes = max(self.bytes, sum(alive.values()))
        return result
