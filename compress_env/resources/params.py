"""Parameters: weights and biases, each shared tensor once."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from compress_env.surgery.graph import PrunedView

UNIT = "parameters"
MANY = True


def predict(network: PrunedView, widths: np.ndarray) -> float | np.ndarray:
    """Parameters of the network with these widths `(groups,)`, exactly."""
    return network.parameters(widths)


def count(model: nn.Module, example: Tensor) -> float:
    """Parameters of a module."""
    return float(sum(p.numel() for p in model.parameters()))
