"""Parameters: weights and biases, each shared tensor once."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from compress_env.surgery.graph import Reduced

NAME, UNIT = "params", "parameters"


def predict(network: Reduced, widths: np.ndarray) -> float:
    """Parameters of the network with these widths `(groups,)`, exactly."""
    if "params" not in network.__dict__:
        layers = network.layers
        kernel = np.array([layer.kernel / (layer.groups if layer.kind == "grouped" else 1) for layer in layers])
        depthwise = np.array([layer.kind == "depthwise" for layer in layers])
        bias = np.array([layer.params_per_channel for layer in layers], float)
        network.__dict__["params"] = kernel, depthwise, bias, sum(layer.fixed_params for layer in layers)
    kernel, depthwise, bias, fixed = network.__dict__["params"]
    inputs, outputs = (m @ widths + c for m, c in (network.layer_inputs, network.layer_outputs))
    return float((kernel * np.where(depthwise, 1, inputs) * outputs + bias * outputs).sum() + fixed)


def count(model: nn.Module, example: Tensor) -> float:
    """Parameters of a module."""
    return float(sum(p.numel() for p in model.parameters()))
