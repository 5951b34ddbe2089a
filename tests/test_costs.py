"""The compiled cost model gives exactly what a plain walk over the terms gives, for one plan and for many at once."""

from __future__ import annotations

import numpy as np
from reference import Plain

from compress_env.resources.budget import RESOURCES

EXACT = ("params", "macs", "memory")


def test_costs_are_those_of_a_plain_walk_for_any_removal_and_widths(network):
    _, _, graph = network
    rng = np.random.default_rng(0)
    for _ in range(60):
        removed = frozenset(name for name in graph.units if rng.random() < rng.random())
        fast, slow = graph.reduce(removed), Plain(graph, removed)
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
        removed = frozenset(name for name in graph.units if rng.random() < 0.5)
        fast, widths = graph.reduce(removed), rng.integers(graph.floor, graph.full + 1)
        assert sum(fast.layer_macs(widths).values()) == fast.macs(widths)
        assert sum(fast.layer_parameters(widths).values()) == fast.parameters(widths)
        assert fast.layer_parameters(widths).keys() == {x.name for x in fast.layers}
