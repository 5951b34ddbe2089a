"""`folded`: weights that are computed from others before each use, as by weight normalisation, replaced by their values."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def folded(module: nn.Module) -> nn.Module:
    """The module itself if its weights are its own, else a copy whose weights are the values that they have now.

    Weight and spectral normalisation, pruning masks, and whatever else is a parametrization of PyTorch's.
    """
    if not computed_weights(module):
        return module
    values = [v for m in module.modules() for v in m.__dict__.values() if isinstance(v, Tensor) and not v.is_leaf]
    module = copy.deepcopy(module, {id(v): v.detach().clone() for v in values})  # which autograd does not let be copied
    for part in list(module.modules()):
        _fold(part)
    return module


def computed_weights(module: nn.Module) -> list[str]:
    """The names of the layers whose weights are computed from others before each use."""
    return [name for name, m in module.named_modules() if parametrize.is_parametrized(m) or _hooks(m)]


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks with which the older functions of torch.nn.utils compute a weight before each forward pass."""
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    return [h for h in module._forward_pre_hooks.values() if isinstance(h, kinds)]


def _fold(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):  # not by PyTorch's own function, which changes the class that the original has, too
        found: Any = module._modules["parametrizations"]
        values = {name: (getattr(module, name).detach().clone(), list(own.parameters())) for name, own in found.items()}
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]
        for name, (value, sources) in values.items():
            if sources:
                module.register_parameter(name, nn.Parameter(value, any(p.requires_grad for p in sources)))
            else:
                module.register_buffer(name, value)
    for hook in _hooks(module):
        if isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(module, hook.name)
        else:
            prune.remove(module, hook._tensor_name)
