"""The multiply-accumulates and the memory of every node of a traced network, for one example."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.surgery.call import tensors
from compress_env.surgery.rules.cutting import computed

M = TypeVar("M", bound=nn.Module)


class Used(NamedTuple):
    """What a node takes for one example.

    macs: its multiply-accumulates. size: bytes of its result. number: bytes of one number of it, the fewest if they differ. shape: of
    its only tensor, None if there is not one. view: whether it owns no memory; of several examples, the same operation may copy.
    """

    macs: float
    size: int
    number: int
    shape: tuple[int, ...] | None
    view: bool


Usage = dict[str, Used]


def measure(traced: fx.GraphModule, examples: tuple[Tensor, ...]) -> Usage:
    """What each node takes, by its name.

    It runs on the meta device, where nothing is computed, if the network can: on CPUs, PyTorch's counter misses fused attention.
    """
    single = tuple(x[:1] for x in examples)
    try:
        with torch.device("meta"):  # for tensors that the network makes
            return _Usage(meta_copy(traced)).measured(tuple(x.to("meta") for x in single))
    except Exception:  # noqa: BLE001 - a part that looks at its numbers, with numpy say, raises anything where there are none
        return _Usage(traced).measured(single)


def meta_copy(module: M) -> M:
    """A copy on the meta device, which computes shapes and nothing else; no weight is copied on the way."""
    held = [*module.parameters(), *module.buffers(), *computed(module)]
    shadows = {id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.detach().to("meta")
               for t in held}  # fmt: skip
    return copy.deepcopy(module, shadows).to("meta")


def shared_copy(module: M) -> M:
    """A copy that shares its weights with the module, but not its buffers, which a forward pass may write to."""
    shared: dict[int, Tensor] = {id(t): t for t in [*module.parameters(), *computed(module)]}
    return copy.deepcopy(module, shared | {id(b): b.detach().clone() for b in module.buffers()})


class _Usage(fx.Interpreter):
    def measured(self, inputs: tuple[Tensor, ...]) -> Usage:
        self.found: Usage = {}
        with FlopCounterMode(display=False) as self.counter, torch.no_grad():
            self.run(*inputs)
        return self.found

    def run_node(self, node: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(node)
        given = tensors(result)
        shape = tuple(given[0].shape) if len(given) == 1 else None
        size, number = sum(t.nbytes for t in given), min((t.element_size() for t in given), default=1)
        own, read = _storages(result), {s for i in node.all_input_nodes for s in _storages(self.env.get(i))}
        view = node.op != "placeholder" and bool(own) and own <= read
        self.found[node.name] = Used((self.counter.get_total_flops() - before) / 2, size, number, shape, view)
        return result


def _storages(result: Any) -> set[int]:
    return {t.untyped_storage()._cdata for t in tensors(result)}
