"""Parameters and buffers that several parts of a network read: they stay one tensor in every student, and are counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.ir import Readers
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.elementwise import CASTS

HEADERS = ("dtype", "device", "is_cuda", "layout", "requires_grad")
"""Attributes of a tensor that are not its numbers."""


def find_shared(traced: fx.GraphModule, nodes: Sequence[fx.Node]) -> dict[str, Readers]:
    """For each tensor that more than one part of the network reads, its name and who reads it.

    Notes in each node the names of those that it reads (`shared`), and whether it reads no number of a tensor (`header`).
    """
    tensors: dict[int, dict[tuple[str, str], None]] = {}
    for node in nodes:
        node.meta["header"] = node.op == "get_attr" and all(_reads_header(user, node) for user in node.users)
        for key, tensor in _read(traced, node):
            tensors.setdefault(id(tensor), {})[str(node.target), key] = None
    found: dict[str, Readers] = {}
    of: dict[int, str] = {}
    for which, readers in tensors.items():
        if len(readers) > 1:
            name = next((layer for layer, key in readers if not key), ".".join(next(iter(readers))))
            found[name], of[which] = tuple(readers), name
    for node in nodes:
        names = (of[id(tensor)] for _, tensor in _read(traced, node) if id(tensor) in of)
        node.meta["shared"] = tuple(dict.fromkeys(names))
    return found


def tie_shared(flow: ChannelFlow, traced: fx.GraphModule, shared: Mapping[str, Readers]) -> None:
    """What reads a tensor shrinks as it does; where that cannot be, it stays as it is."""
    modules = dict(traced.named_modules())
    for name, readers in shared.items():
        tensor = _tensor(traced, *readers[0])
        for axis in range(tensor.dim()):
            numbers = [_numbers(flow, modules, tensor, axis, *reader) for reader in readers]
            if all(n is not None and not len(n) for n in numbers):
                continue
            known = [n for n in numbers if n is not None]
            if len(known) == len(numbers) and all(len(n) == tensor.shape[axis] for n in known):
                for other in known[1:]:
                    flow.ties.unite(known[0], other)
            else:
                for layer, key in readers:
                    _fix(flow, layer, key, f"it shares {name}")


def tied(parts: dict[str, Any], shared: Mapping[str, Readers]) -> None:
    """Make tensors that are shared one tensor in the parts of a student, which hold copies of them."""
    for readers in shared.values():
        own: Tensor | None = None
        for layer, key in readers:
            part = parts.get(layer)
            if isinstance(part, nn.Module):
                owner, _, attribute = key.rpartition(".")
                held = part.get_submodule(owner)
                table = held._parameters if attribute in held._parameters else held._buffers
                own = table[attribute] = table[attribute] if own is None else own  # type: ignore[assignment]
            elif part is not None:
                own = parts[layer] = part if own is None else own


def held_tensor(parts: Mapping[str, Any], name: str) -> Tensor | None:
    """The tensor of this name in one of the layers of a student, if it has that layer."""
    for layer, part in parts.items():
        if isinstance(part, nn.Module) and name.startswith(f"{layer}."):
            owner, _, attribute = name[len(layer) + 1 :].rpartition(".")
            return getattr(part.get_submodule(owner), attribute)
    return None


def _reads_header(user: fx.Node, node: fx.Node) -> bool:
    if user.op == "call_function" and user.target is getattr:
        return user.args[1] in HEADERS
    return user.op == "call_method" and user.target in CASTS and user.args[0] is not node


def _read(traced: fx.GraphModule, node: fx.Node) -> list[tuple[str, Tensor]]:
    """The tensors that a node reads, each with its name in the layer."""
    if node.op == "get_attr" and not node.meta["header"]:
        return [("", _tensor(traced, str(node.target), ""))]
    if node.op != "call_module":
        return []
    module = traced.get_submodule(str(node.target))
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _tensor(traced: fx.GraphModule, layer: str, key: str) -> Tensor:
    owner, _, attribute = f"{layer}.{key}".rstrip(".").rpartition(".")
    value = getattr(traced.get_submodule(owner), attribute)
    return value if isinstance(value, Tensor) else torch.tensor(0)


def _numbers(
    flow: ChannelFlow, modules: Mapping[str, nn.Module], tensor: Tensor, axis: int, layer: str, key: str
) -> np.ndarray | None:
    """The channel numbers along an axis of a tensor, as one of its readers sees it: none if it does not run over channels.

    None if they are not known or stay.
    """
    if not key:
        ids = flow.parameters.get(layer)
        return ids.flatten().numpy() if ids is not None and ids.dim() == 1 else None
    rule = rule_of(modules[layer])
    if rule.geometry(modules[layer], 1) is None:
        return None
    axes = rule.axes(modules[layer], key, tensor)
    side = axes[axis] if axis < len(axes) else None
    return np.zeros(0, int) if side is None else flow.sides.get((layer, side))


def _fix(flow: ChannelFlow, layer: str, key: str, reason: str) -> None:
    """Whatever the tensor runs over in a reader stays."""
    if not key:
        if layer in flow.parameters:
            flow.ties.fix(flow.parameters[layer].numpy(), reason)
        return
    inner = f"{layer}.{key}".rpartition(".")[0]
    for own, side in list(flow.sides):
        if own in (layer, inner):
            flow.fix_side(own, side, reason)
