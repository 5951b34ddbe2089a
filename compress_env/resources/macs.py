"""Multiply-accumulate operations for one example, in convolutions, linear layers and matrix products."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.surgery.graph import Reduced

UNIT = "MACs"
MANY = True


def predict(network: Reduced, widths: np.ndarray) -> float | np.ndarray:
    """MACs of the network with these widths `(groups,)`, exactly; normalisation and activations count nothing."""
    return network.macs(widths)


def count(model: nn.Module, example: Tensor) -> float:
    """MACs of a module for one example, by PyTorch's own counter, which counts two operations a MAC. Both are on the meta device,
    since on CPUs the counter misses fused attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() / 2
