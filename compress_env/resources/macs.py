"""Multiply-accumulate operations for one example, in convolutions, linear layers and matrix products."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.surgery.graph import Reduced

NAME, UNIT = "macs", "MACs"


def predict(network: Reduced, widths: np.ndarray) -> float:
    """MACs of the network with these widths `(groups,)`, exactly; normalisation and activations count nothing."""
    if "macs" not in network.__dict__:
        layers = network.layers
        cost = np.array([layer.kernel * layer.positions / (layer.groups if layer.kind == "grouped" else 1) for layer in layers])
        network.__dict__["macs"] = cost, np.array([layer.kind == "depthwise" for layer in layers])
    cost, depthwise = network.__dict__["macs"]
    inputs, outputs = (m @ widths + c for m, c in (network.layer_inputs, network.layer_outputs))
    return float((cost * np.where(depthwise, 1, inputs) * outputs).sum())


def count(model: nn.Module, example: Tensor) -> float:
    """MACs of a module for one example, by PyTorch's own counter (which counts two operations per MAC) on the meta device."""
    shadow = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(example[:1].to("meta"))
    return counter.get_total_flops() / 2
