"""Any network can grow: `pytest tests/test_networks_grow.py --every-export` prints a table of them at the end.

That takes ten minutes: three groups of each network are widened and three places deepened; otherwise two in two networks.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from zoo import TIMM, TORCHVISION, make

from compress_env.surgery.build import build_student
from compress_env.surgery.net2net import NotPreserved, deepen, difference, places, widen
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace

CHANGES = 10
"""Growths and shrinkings in turn, for the table of docs/growth.md (--every-export); 3 otherwise."""

FEW = ("deit_tiny_patch16_224", "squeezenet1_1")


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_a_larger_network_computes_the_same(name, record_property, pytestconfig):
    if name not in FEW and not pytestconfig.getoption("every_export"):
        pytest.skip("with --every-export")
    network, inputs = make(name)
    graph, rng, every = trace(network, inputs), np.random.default_rng(0), pytestconfig.getoption("every_export")
    tried, done, largest = Counter[str](), Counter[str](), 0.0
    groups, found = list(graph.groups.values()), list(places(network, graph).values())
    groups, found = (list(rng.permuted(np.array(x, dtype=object))[: 3 if every else 2]) for x in (groups, found))
    ways = [("wider", g) for g in groups] + [(kind, p) for p in found for kind in p.kinds]
    for kind, what in ways:
        tried[kind] += 1
        try:
            if kind == "wider":
                larger = widen(network, graph, what.name, what.size + what.step * int(rng.integers(1, 4)))
            else:
                larger = deepen(network, graph, what.name, kind, inputs=inputs)
        except NotPreserved:
            continue
        done[kind] += 1
        largest = max(largest, difference(network, larger, inputs))
        assert larger(inputs).isfinite().all()
    assert largest <= 1e-5 and (done["wider"] or done["layer"] or done["block"])
    changed = in_turn(network, inputs, CHANGES if every else 3, rng)
    record_property("grown", {
        "network": name,
        **{kind: f"{done[kind]} of {tried[kind]}" for kind in ("wider", "layer", "block")},
        "largest difference": f"{largest:.1e}",
        "in turn": f"{changed:.1e}",
    })  # fmt: skip


def in_turn(network: nn.Module, inputs: torch.Tensor, changes: int, rng: np.random.Generator) -> float:
    """Wider, deeper, narrower and so on, each of the network that the last change gave; the largest difference of a growth."""
    largest = 0.0
    for step in range(changes):
        graph, before = trace(network, inputs), network
        groups = list(graph.groups.values())
        group = groups[rng.integers(len(groups))]
        if step % 3 == 2:
            network = build_student(network, graph, Plan.of(widths={group.name: group.allowed(group.size - 1)}))
            assert network(inputs).isfinite().all()
            continue
        try:
            if step % 3 == 0:
                network = widen(before, graph, group.name, group.size + group.step)
            elif known := list(places(before, graph).values()):
                place = known[rng.integers(len(known))]
                network = deepen(before, graph, place.name, name=f"deeper{step}", inputs=inputs)
        except NotPreserved:
            continue
        largest = max(largest, difference(before, network, inputs))
    assert largest <= 1e-5
    return largest
