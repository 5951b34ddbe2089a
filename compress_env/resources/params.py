"""Parameters: weights and biases, each shared tensor once."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from compress_env.resources.base import RESOURCES, Resource
from compress_env.surgery.graph import PrunedView


@RESOURCES.register("params")
class Params(Resource):
    """Parameters of a network, exactly."""

    label, unit, vectorised = "Parameters", "parameters", True

    def predict(self, view: PrunedView, widths: np.ndarray) -> float | np.ndarray:
        """Parameters of a plan."""
        return view.parameters(widths)

    def count(self, student: nn.Module, example: Tensor) -> float:
        """Parameters of a module."""
        return float(sum(p.numel() for p in student.parameters()))
