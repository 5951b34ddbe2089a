"""Multiply-accumulate operations for one example, in convolutions, linear layers and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop

from compress_env.resources.base import RESOURCES, Resource
from compress_env.surgery.graph import PrunedView
from compress_env.surgery.measure import meta_copy

_FORMULAS = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}


@RESOURCES.register("macs")
class Macs(Resource):
    """MACs of a network for one example, exactly; normalisation and activations count nothing."""

    label, unit, vectorised = "MACs", "MACs", True

    def predict(self, view: PrunedView, widths: np.ndarray) -> float | np.ndarray:
        """MACs of a plan for one example."""
        return view.macs(widths)

    def count(self, student: nn.Module, example: Tensor) -> float:
        """MACs of a module for one example, which runs through it: the sum of PyTorch's own formulas over the operators called.

        Where the module calls one that PyTorch has no formula for on this device, it is counted on a copy on the meta device.
        """
        counter = _Counter()
        with torch.no_grad(), counter:
            student(example)
        if counter.unknown and example.device.type != "meta":
            return self.count(meta_copy(student), example.to("meta"))
        return counter.operations / 2


class _Counter(TorchDispatchMode):
    """Adds up the operations of a block, two a MAC; like `torch.utils.flop_counter.FlopCounterMode`, without its table of modules."""

    operations, unknown = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = getattr(func, "_overloadpacket", func)
        if operator in _FORMULAS:
            self.operations += _FORMULAS[operator](*args, **(kwargs or {}), out_val=result)
        elif any(kind in str(func) for kind in ("attention", "encoder", "rnn")):  # whole layers in one operator
            self.unknown = True
        return result
