"""Which channels to keep: those whose activations explain best what the layers behind them compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress_env import cache
from compress_env.errors import UserError
from compress_env.surgery.derived import fits
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Group, Ranking
from compress_env.surgery.layerwise import part_size
from compress_env.surgery.layout import channels_last, memory_format
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.base import first

NEEDS_INPUTS = True
FORMAT = 2
"""To be counted up when the same inputs give other orders: they are kept on disk."""
NUMBERS = 2**24
"""Numbers in the sample of a layer at most: positions x outputs x channels."""
OUTPUTS = 32
"""Outputs of a layer that are looked at, at most."""
PLACES = 16
"""Positions of each image that are looked at, at most."""
RIDGE = 0.1
"""Share of the mean variance of a channel's contribution that is added to each: few images make chance correlations."""


def rank(teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor | None) -> Ranking:
    """Rank the channels of each group by how well they explain what the layers behind them compute on images.

    A channel contributes to each output of a dense layer behind it its weights times its activations (ThiNet, Luo et al.,
    ICCV 2017). Channels are taken one by one, always the one with which the sum of all contributions is best
    regressed on those taken so far (orthogonal least squares, Chen et al. 1989), so that of two that say the same, one is enough.
    Orders that took more than a second to find are kept in the user's cache folder.

    Args:
        teacher: The student of the empty plan.
        graph: The teacher's graph.
        inputs: Images `(n, ...)`.

    Returns:
        The ranking, without groups that no dense layer reads.

    Raises:
        UserError: If there are no images.
    """
    if inputs is None:
        raise UserError("the ranking 'reconstruction' looks at images and was given none; 'magnitude' needs none")
    members = [
        (g.name, m.layer, m.side, m.position.tolist(), m.channel.tolist())
        for g in graph.groups.values()
        for m in g.members
    ]
    key = cache.content_key(FORMAT, teacher, inputs, members, inputs.device.type)

    def use(found: dict[str, Tensor]) -> Ranking:
        ranking = Ranking("reconstruction", {name: order.numpy().astype(int) for name, (order, _) in found.items()})
        graph.ranked(ranking)
        return ranking

    return cache.tensors("channels", key, lambda: _orders(teacher, graph, inputs), use)


@torch.no_grad()
def _orders(teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor) -> dict[str, Tensor]:
    sampler = _Sampler(teacher, graph, len(inputs))
    parts = inputs.split(part_size(graph, len(inputs), inputs.device))
    with channels_last(teacher) if len(parts) > 1 else nullcontext():
        layout = memory_format(teacher, inputs) if len(parts) > 1 else torch.contiguous_format
        for part in parts:
            sampler.run(part.contiguous(memory_format=layout))
            sampler.seen += len(part)
    return {name: torch.from_numpy(np.stack(selection_order(m))) for name, m in sampler.moments.items()}


class _Sampler(fx.Interpreter):
    """Notes for each group the second moments of its channels' contributions to each of its consumers.

    It runs once for each part of the inputs. The samples do not depend on how these are divided; a layer's are worked up, and let go,
    as soon as the last part gave its own.
    """

    def __init__(self, teacher: fx.GraphModule, graph: LayerGraph, inputs: int) -> None:
        super().__init__(teacher)
        self.inputs, self.seen = inputs, 0
        self.moments: dict[str, list[np.ndarray]] = {}
        self.samples: dict[tuple[str, str], Tensor] = {}
        self.readers: dict[tuple[str, str], list[tuple[Group, np.ndarray, np.ndarray]]] = {}
        for group in graph.groups.values():
            for m in group.members:
                self.readers.setdefault((m.layer, m.side), []).append((group, m.position, m.channel))
        self.part = 0

    def run(self, part: Tensor, **_: Any) -> Any:  # type: ignore[override]
        """The outputs for a part of the inputs."""
        self.part = len(part)
        return super().run(part)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_module(target, args, kwargs)
        module = self.module.get_submodule(target)
        for side in rule_of(module).reads if fits(module, args, kwargs, result) else ():
            if (target, side) in self.readers:
                weight = _weight(module, side)
                self._sample(target, module, side, weight[:, :, 0].numel(), args, kwargs, result)
                if self.seen + self.part == self.inputs:
                    self._note(target, side, weight)
        return result

    def _sample(
        self, name: str, module: nn.Module, side: str, numbers: int, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Take samples `(n, features * kernel)` of what a layer reads on a side, to their place among those of all parts."""
        rule = rule_of(module)
        rows = max(1, NUMBERS // numbers)
        share = self.inputs / self.part
        own = len(first(args, kwargs))
        positions = rule.positions(module, name, output, min(PLACES, math.ceil(rows / round(own * share))))
        patches = rule.read(module, side, args, kwargs, positions)
        total = round(len(patches) * share)
        stride = max(1, total // rows)
        if self.part == self.inputs:
            self.samples[name, side] = patches[::stride][:rows]
            return
        ranks = np.arange(0, total, stride)[:rows]
        places = len(positions) if positions else 1  # samples lie place by place, in each input by input
        place, index = np.divmod(ranks, total // places)
        each, before = len(patches) // places, round(total // places * self.seen / self.inputs)
        here = (index >= before) & (index < before + each)
        if (name, side) not in self.samples:  # as a whole, lest memory is left in pieces
            self.samples[name, side] = patches.new_empty(len(ranks), patches.shape[1])
        to, local = (torch.from_numpy(i).to(patches.device) for i in (np.flatnonzero(here), (place * each + index - before)[here]))
        self.samples[name, side][to] = patches[local]

    def _note(self, target: str, side: str, weight: Tensor) -> None:
        """Work up the samples of a layer."""
        patches = self.samples.pop((target, side))
        patches = patches.unflatten(1, (weight.shape[1], -1))
        contributions = torch.einsum("rik,oik->roi", patches, weight).flatten(0, 1)
        means = torch.einsum("ik,oik->oi", patches.mean(0), weight)
        for group, position, channel in self.readers[target, side]:
            own, mean = (_gather(x, position, channel, group.size) for x in (contributions, means))
            moments = own.T @ own / len(patches) - mean.T @ mean
            self.moments.setdefault(group.name, []).append(moments.double().cpu().numpy())


def _weight(module: nn.Module, side: str) -> Tensor:
    """Weights `(outputs, features, kernel)` of the outputs that are looked at."""
    weight = rule_of(module).weight(module, side)
    return weight[:: max(1, len(weight) // OUTPUTS)][:OUTPUTS].float()


def _gather(x: Tensor, position: np.ndarray, channel: np.ndarray, size: int) -> Tensor:
    """Columns `(.., size)` of channels: sums of the columns at their positions."""
    if len(position) == x.shape[1] == size and (position == channel).all():
        return x
    index = torch.from_numpy(channel).to(x.device)
    return x.new_zeros(len(x), size).index_add_(1, index, x[:, torch.from_numpy(position).to(x.device)])


def selection_order(moments: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Channels `(n,)`, the first to be taken first, and which share of everything those up to each explain `(n,)`.

    moments: matrices `(n, n)` of contributions, one a consumer, which count alike.
    """
    fits = [_Fit(m / m.sum()) for m in moments if m.sum() > 0]
    size = len(moments[0])
    open_, order, gains = np.ones(size, bool), np.empty(size, int), np.empty(size)
    for step in range(size):
        gain = sum((fit.gains for fit in fits), np.zeros(size))
        order[step] = np.argmax(np.where(open_, gain, -1))
        gains[step] = gain[order[step]]
        open_[order[step]] = False
        for fit in fits:
            fit.take(order[step])
    return order, np.clip(gains.cumsum() / max(1, len(fits)), 0, 1)


class _Fit:
    """A regression of the sum of all contributions on those taken, as a Cholesky decomposition that grows by a row each time."""

    def __init__(self, moments: np.ndarray) -> None:
        self.moments = moments
        ridge = RIDGE * np.diag(moments).mean()
        self.variance = np.diag(moments) + ridge  # of what is not explained yet
        self.covariance = moments.sum(1)  # with what the sum still lacks
        self.rows = np.empty_like(moments)
        self.taken = 0

    @property
    def gains(self) -> np.ndarray:
        """How much of the sum's variance each channel would explain in addition."""
        return self.covariance**2 / self.variance

    def take(self, channel: int) -> None:
        known = self.rows[: self.taken]
        scale = math.sqrt(self.variance[channel])
        row = (self.moments[channel] - known[:, channel] @ known) / scale
        self.rows[self.taken] = row
        self.taken += 1
        self.covariance = self.covariance - row * (self.covariance[channel] / scale)
        self.variance = np.maximum(self.variance - row**2, 1e-12)
