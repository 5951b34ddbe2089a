"""Net2Net: larger networks that compute what the smaller one does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_env.errors import InvalidPlan, UserError
from compress_env.surgery.build import build_student
from compress_env.surgery.net2net import NotPreserved, deepen, difference, places, widen
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.teachers import load_teacher


def seeded(network: nn.Module) -> nn.Module:
    """Weights and statistics that are not symmetric, so that a wrong index shows."""
    generator = torch.Generator().manual_seed(0)
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point():
            deviates = torch.randn(value.shape, generator=generator)
            value.data.copy_(0.5 + deviates.abs() if value.dim() == 1 else deviates / 3)
    return network.eval()


class Joined(nn.Module):
    """Residual addition, concatenation, depthwise and grouped convolutions, a shuffle of channels, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.pairs = nn.Conv2d(12, 8, 1, groups=2)
        self.norm = nn.GroupNorm(4, 8)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.branch(x))
        x = torch.cat([x, self.depthwise(x)], 1)
        n, c, h, w = x.shape
        x = torch.relu(self.grouped(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))
        x = torch.relu(self.norm(self.pairs(x)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


INPUTS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def joined():
    network = seeded(Joined())
    return network, trace(network, INPUTS)


def test_every_group_can_be_wider_and_the_outputs_stay(joined):
    network, graph = joined
    before = copy.deepcopy(network.state_dict())
    for group in graph.groups.values():
        for channels in (group.size + group.step, 3 * group.size):
            wide = widen(network, graph, group.name, channels)
            assert difference(network, wide, INPUTS) < 1e-5
            larger = graph.widths(Plan.of(widths={group.name: channels}))
            assert sum(p.numel() for p in wide.parameters()) == graph.view(frozenset()).parameters(larger)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_copies_share_what_reads_them():
    network = seeded(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    wide = widen(network, trace(network, torch.randn(2, 3)), "0", 6)
    first, last = wide.get_submodule("0"), wide.get_submodule("2")
    rows = {tuple(row.tolist()) for row in first.weight}
    assert rows == {tuple(row.tolist()) for row in network[0].weight} and first.weight.shape == (6, 3)
    order = torch.argsort(first.weight[:, 0])
    counts = torch.unique(first.weight[:, 0], return_counts=True)[1]
    expected = torch.repeat_interleave(network[2].weight[:, torch.argsort(network[0].weight[:, 0])] / counts, counts, dim=1)
    assert torch.allclose(last.weight[:, order], expected)
    assert sorted(counts.tolist()) == [1, 1, 2, 2]


def test_noise_makes_copies_differ_and_is_the_same_for_a_seed(joined):
    network, graph = joined
    group = next(iter(graph.groups))
    first, again, other = (widen(network, graph, group, 16, noise=0.01, seed=s) for s in (0, 0, 1))
    weight = first.get_submodule(group).weight
    assert len(torch.unique(weight.flatten(1), dim=0)) == len(weight) > network.get_submodule(group).out_channels
    assert torch.equal(weight, again.get_submodule(group).weight) and not torch.equal(weight, other.get_submodule(group).weight)
    assert 0 < difference(network, first, INPUTS) < 0.2


def test_heads_of_attention_can_be_wider():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention, self.head = nn.Linear(6, 8), nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    network, x = seeded(Attending()), torch.randn(2, 5, 6)
    graph = trace(network, x)
    heads = next(g for g in graph.groups.values() if "attention" in g.name and g.size == 4)
    wide = widen(network, graph, heads.name, 6)
    assert difference(network, wide, x) < 1e-5 and wide.get_submodule("attention").num_heads == 6


def test_where_widening_would_change_the_outputs_it_names_the_place():
    network = seeded(nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3)))
    with pytest.raises(NotPreserved, match=r"10 channels for '0' would change .* '2'"):
        widen(network, trace(network, torch.randn(2, 6)), "0", 10)


def test_what_cannot_be_widened_is_refused(joined):
    network, graph = joined
    with pytest.raises(UserError, match="no group"):
        widen(network, graph, "nowhere", 4)
    name, group = next(iter(graph.groups.items()))
    with pytest.raises(UserError, match="needs more than that"):
        widen(network, graph, name, group.size)
    with pytest.raises(InvalidPlan, match="keeps"):
        build_student(network, graph, Plan.of(widths={name: group.size + 1}))


def test_layers_and_blocks_are_inserted_everywhere_and_the_outputs_stay(joined):
    network, graph = joined
    found = places(network, graph)
    assert sum("layer" in place.kinds for place in found.values()) == 4
    for place in found.values():
        for kind in place.kinds:
            deep = deepen(network, graph, place.name, kind, inputs=INPUTS)
            assert difference(network, deep, INPUTS) < 1e-5
            assert sum(p.numel() for p in deep.parameters()) > sum(p.numel() for p in network.parameters())
            deep.train()(INPUTS).sum().backward()  # whatever is inserted learns
            new = [p for name, p in deep.named_parameters() if name.startswith("deeper")]
            assert new and any(p.grad.abs().sum() > 0 for p in new)


def test_batch_statistics_are_those_of_the_inputs(joined):
    network, graph = joined
    place = next(p for p in places(network, graph).values() if "layer" in p.kinds)
    deep = deepen(network, graph, place.name, "layer", inputs=INPUTS)
    assert difference(network, deep, INPUTS) < 1e-5
    norm = next(m for name, m in deep.named_modules() if name.startswith("deeper") and isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean.abs().sum() > 0 and not torch.equal(norm.running_var, torch.ones_like(norm.running_var))


def test_a_layer_behind_an_activation_that_is_not_idempotent_is_refused():
    network = seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    graph = trace(network, torch.randn(2, 6))
    known = places(network, graph)
    assert [p.kinds for p in known.values()] == [("layer", "block")]
    with pytest.raises(UserError, match="no place"):
        deepen(network, graph, "_1")

    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.last(torch.tanh(x + self.second(x)))

    network = seeded(Adding())
    graph = trace(network, torch.randn(2, 6))
    (place,) = places(network, graph)
    assert difference(network, deepen(network, graph, place), torch.randn(2, 6)) < 1e-6
    with pytest.raises(NotPreserved, match="idempotent"):
        deepen(network, graph, place, "layer")


def test_ten_growths_and_shrinkings_in_turn():
    teacher = load_teacher("resnet8-digits", None).module
    rng, x = np.random.default_rng(0), torch.randn(8, 1, 8, 8)
    network: nn.Module = teacher
    for step in range(10):
        graph = trace(network, x)
        if step % 3 == 2:
            group = list(graph.groups.values())[rng.integers(len(graph.groups))]
            network = build_student(network, graph, Plan.of(widths={group.name: group.allowed(group.size - 1)}))
            assert torch.isfinite(network(x)).all()
            continue
        before = network
        if step % 3 == 0:
            group = list(graph.groups.values())[rng.integers(len(graph.groups))]
            network = widen(before, graph, group.name, group.size + group.step)
        else:
            known = list(places(before, graph).values())
            place = known[rng.integers(len(known))]
            network = deepen(before, graph, place.name, place.kinds[rng.integers(len(place.kinds))], name=f"deeper{step}", inputs=x)
        assert difference(before, network, x) < 1e-5
