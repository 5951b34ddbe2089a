"""The compiled cost model gives exactly what a plain walk over the terms gives, for one plan and for many at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS
from reference import Plain, PlainEpisode
from torch import nn

from compress_env.allocation.allocator import Allocator
from compress_env.allocation.completion import Completed
from compress_env.allocation.sensitivities import Sensitivities
from compress_env.problem import Measured, Problem
from compress_env.resources import RESOURCES
from compress_env.spec import SCHEDULES, ProblemSpec
from compress_env.surgery.ir import Ranking
from compress_env.walk.observation import Embedding, entries
from compress_env.walk.walk import Walk

EXACT = ("params", "macs", "memory")


def test_costs_are_those_of_a_plain_walk_for_any_removal_and_widths(network):
    _, _, graph = network
    rng = np.random.default_rng(0)
    for _ in range(60):
        removed = frozenset(name for name in graph.blocks if rng.random() < rng.random())
        fast, slow = graph.view(removed), Plain(graph, removed)
        assert fast.alive_ops == slow.alive and fast.alive_groups == slow.alive_groups()
        assert [x.name for x in fast.layers] == [x.name for x in slow.layers]
        many = rng.integers(1, graph.full + 1, (5, len(graph.groups)))
        expected = [slow.usage(dict(zip(graph.groups, row.tolist()))) for row in many]
        for name in EXACT:
            resource = RESOURCES.get(name)
            assert resource.predict(fast, many.T).tolist() == [row[name] for row in expected]
            assert resource.predict(fast, many[0]) == expected[0][name]


def test_costs_of_layers_add_up(network):
    _, _, graph = network
    rng = np.random.default_rng(1)
    for _ in range(10):
        removed = frozenset(name for name in graph.blocks if rng.random() < 0.5)
        fast, widths = graph.view(removed), rng.integers(graph.floor, graph.full + 1)
        assert sum(fast.layer_macs(widths).values()) == fast.macs(widths)
        assert sum(fast.layer_parameters(widths).values()) == fast.parameters(widths)
        assert fast.layer_parameters(widths).keys() == {x.name for x in fast.layers}


@pytest.mark.parametrize(
    ("name", "multiple", "episodes"),
    [
        ("resnet8-digits", 1, 3),
        ("resnet8-digits", 4, 3),
        ("vgg-bn", 1, 3),
        ("functional", 1, 3),
        ("resnet20-cifar10", 1, 1),
    ],
)
def test_episodes_are_those_of_a_plain_walk(name, multiple, episodes):
    factory, shape = NETWORKS[name]
    teacher = factory().eval()
    rng = np.random.default_rng(0)
    place = {name: i for i, (name, _, _) in enumerate(entries())}
    known = Measured(Ranking("magnitude", {}), shape)
    for schedule in SCHEDULES:
        spec = ProblemSpec(teacher, ranking="magnitude", schedule=schedule, channel_multiple=multiple, data="digits")
        problem = Problem.build(spec, measured=known)
        graph, cost_model = problem.graph, problem.cost_model
        allocator = Allocator(problem, made_up(problem, rng))
        embedding = Embedding(allocator.problem, allocator)
        for _ in range(episodes):
            names = [n for n in EXACT if rng.random() < 0.6] or ["macs"]
            limits = {
                n: problem.smallest(n) + rng.random() ** 2 * (cost_model.teacher[n] - problem.smallest(n)) for n in names
            }
            hard, bias = rng.random() < 0.8, rng.uniform(-1, 1, 2)
            fast, slow = Walk(problem, limits, hard), PlainEpisode(problem, limits, hard)
            reachable = {n: max(limit, problem.completions[0].usage[n]) for n, limit in limits.items()}
            allocation = allocator.reference(reachable).allocation
            while not fast.done:
                completed = Completed.of(fast.completed(allocation), allocator)
                seen = embedding(fast, completed, allocation)
                assert fast.uniform_keep_ratio() == slow.uniform_keep_ratio() and fast.current.inactive(fast) == slow.inactive()
                plan = completed.plan
                used = Plain(graph, plan.removed).usage(dict(zip(graph.groups, plan.widths.tolist())))
                assert fast.removed <= plan.removed and (not hard or all(used[n] <= limits[n] * (1 + 1e-9) for n in names))
                zero = slow.uniform_keep_ratio() if fast.current.shrinks else 1.0
                expected = {"action 0": 0.0 if slow.inactive() else zero, "inactive": float(slow.inactive())}
                expected |= {f"spent {n}": min(1, used[n] / cost_model.teacher[n]) for n in EXACT}
                assert {n: seen[place[n]] for n in expected} == {n: np.float32(v) for n, v in expected.items()}
                action = np.clip(rng.uniform(-1, 1, 2) + bias, -1, 1).tolist()
                fast.step(*action)
                slow.step(*action)
                assert fast.removed == slow.removed and fast.widths.tolist() == list(slow.widths.values())
                assert fast.previous == slow.previous


def made_up(problem: Problem, rng: np.random.Generator) -> Sensitivities:
    """Losses that fall with the width of a group, drawn at random."""
    groups = {
        name: tuple(zip((1, max(2, g.size // 2)), sorted(rng.uniform(0.001, 1, 2).tolist(), reverse=True)))
        for name, g in problem.graph.groups.items() if g.size > 4
    }  # fmt: skip
    return Sensitivities({name: float(rng.uniform(0.001, 1)) for name in problem.graph.blocks}, groups, 0, 0.0)


def test_fused_attention_is_counted_by_its_matrix_products():
    tokens, width = 5, 16
    attention = 2 * tokens * tokens * width  # queries by keys, weights by values; the heads share the width
    x = torch.randn(1, tokens, width)

    class Fused(nn.Module):
        def forward(self, x):
            heads = x.view(1, tokens, 2, width // 2).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)

    assert RESOURCES.get("macs").count(Fused(), x) == attention
    layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True).eval()  # one operator without gradients
    assert RESOURCES.get("macs").count(layer, x) == attention + tokens * width * (3 * width + width + 2 * 32)
