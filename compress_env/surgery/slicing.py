"""Copies of layers with fewer or more features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compress_env.surgery.rules.cutting import Indices, duplicate, shallow
from compress_env.surgery.rules.registry import rule_of


def sliced(module: nn.Module, indices: Mapping[str, Indices], name: str) -> nn.Module:
    """A copy of the layer `name` that shares nothing with it, with the features that `indices` names; of its inner layers too."""
    if rule_of(module).sides and name in indices:
        return rule_of(module).sliced(module, indices[name])
    if type(module).__module__.startswith("torch.nn.") and not (
        module._parameters or module._buffers or module._modules
    ):
        return shallow(module)  # an activation or a pool
    new = duplicate(module)
    for inner, child in module.named_modules():
        if inner and f"{name}.{inner}" in indices:
            owner, _, attribute = inner.rpartition(".")
            setattr(new.get_submodule(owner), attribute, rule_of(child).sliced(child, indices[f"{name}.{inner}"]))
    return new
