"""Any teacher: networks that were written without us in mind. `pytest tests/test_networks.py` prints a table of them at the end.

With `--every-export`, which takes an hour, all networks are taken, and all of twenty random students exported and compared in ONNX
Runtime; otherwise the smaller networks, and the last of two.
"""

from __future__ import annotations

import copy
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from zoo import FURTHER, TIMM, TORCHVISION, further, make

from compress_env.export import export_onnx
from compress_env.problem import Problem
from compress_env.spec import ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.surgery.rules import rule_of
from compress_env.surgery.trace import trace
from compress_env.testing.teacher import check_teacher
from compress_env.walk.walk import Walk

PLANS, FEW = 20, 2
"""Random plans of each network for the table of docs/networks.md (--every-export), and otherwise."""
EXACT = ("params", "macs", "memory")
LARGE = (
    "vgg16_bn", "vit_b_16", "convnext_tiny", "resnet50", "resnext50_32x4d", "resnetv2_50", "res2net50_26w_4s", "convmixer_768_32",
    "densenet121", "efficientformerv2_s0", "googlenet", "hgnetv2_b0", "mnasnet1_0",
    "efficientnet_b0", "mobilenet_v2", "mobilenetv4_conv_small",
)  # fmt: skip
"""Networks that take long, and whose kinds others have, too: with --every-export."""
LONG_EXPORTS = ("deit_tiny_patch16_224", "ghostnet_100", "repvgg_a0", "shufflenet_v2_x1_0", "swin_t")
"""Of which no student is exported without --every-export: PyTorch takes ten to thirty seconds for one."""


@pytest.fixture
def name(request, pytestconfig):
    """A network's name; a large one is skipped in everyday tests."""
    if request.param in LARGE + FURTHER and not pytestconfig.getoption("every_export"):
        pytest.skip("with --every-export")
    return request.param


@pytest.mark.parametrize("name", TORCHVISION + TIMM, indirect=True)
def test_a_network_is_removed_from_and_shrunk_within_every_budget(name, tmp_path, record_property, pytestconfig):
    teacher, inputs = make(name)
    began = time.perf_counter()
    trace(teacher, inputs)
    seconds = {"trace": time.perf_counter() - began}
    problem = Problem.build(ProblemSpec(teacher, input_shape=inputs.shape[1:], ranking="magnitude"))
    graph = problem.graph
    with torch.no_grad():
        expected = teacher(inputs)
        assert torch.equal(build_student(teacher, graph, Plan())(inputs), expected)
    smallest = problem.smallest("macs") / problem.cost_model.teacher["macs"]
    assert graph.blocks and graph.groups and smallest < 0.4
    rng = np.random.default_rng(0)
    builds, differences = [], []
    every = pytestconfig.getoption("every_export")
    count = PLANS if every else FEW
    for i in range(count):
        limits = {n: rng.uniform(problem.smallest(n), problem.cost_model.teacher[n]) for n in EXACT if rng.random() < 0.5}
        limits = limits or {"macs": problem.cost_model.teacher["macs"] / 2}
        episode = Walk(problem, limits, hard=True)
        bias = rng.uniform(-1, 1, 2)
        while not episode.done:
            episode.step(*np.clip(rng.uniform(-1, 1, 2) + bias, -1, 1))
        plan, student, usage = problem.finish(episode.removed, episode.widths, limits)
        assert all(usage[n] <= limit for n, limit in limits.items())
        predicted = problem.cost_model.predict_all(frozenset(plan.removed), graph.widths(plan))
        assert usage["params"] == predicted["params"] == sum(p.numel() for p in student.parameters())
        assert usage["macs"] == pytest.approx(predicted["macs"], rel=1e-12)
        assert usage["memory"] == pytest.approx(predicted["memory"], rel=1e-12)
        outputs = student.train()(inputs)
        assert outputs.shape == expected.shape
        outputs.square().sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())
        began = time.perf_counter()
        student = build_student(teacher, graph, plan)
        builds.append(time.perf_counter() - began)
        if every or i == count - 1 and name not in LONG_EXPORTS:
            differences.append(export_onnx(student, inputs, tmp_path / "student.onnx"))
            assert differences[-1] <= 1e-4
    batch = inputs[:1].expand(32, -1, -1, -1).contiguous()
    with torch.no_grad():
        began = time.perf_counter()
        teacher(batch)
        seconds["forward"] = time.perf_counter() - began
    record_property("network", row(name, graph, smallest, seconds, float(np.median(builds)), len(differences)))


def row(
    name: str, graph: LayerGraph, smallest: float, seconds: dict[str, float], build: float, exported: int
) -> dict[str, str]:
    """What the table says of a network; times are this run's, beside each other."""
    whole, full = graph.view(frozenset()), graph.full
    removed = graph.view(frozenset(graph.canonical(frozenset(graph.blocks), full).removed))
    stays = Counter(
        why for why in graph.left_alone.values() if not why.startswith("not removable") and "outputs" not in why
    )
    return {
        "network": name,
        "blocks": str(len(graph.blocks)),
        "groups": str(len(graph.groups)),
        "smallest MACs": f"{smallest:.1%}",
        "by removal": f"{removed.macs(full) / whole.macs(full):.1%}",
        "by width": f"{whole.macs(graph.floor) / whole.macs(full):.1%}",
        "trace s": f"{seconds['trace']:.1f}",
        "build / forward of 32": f"{build / seconds['forward']:.2f}",
        "equal in ONNX": f"{exported} of {exported}",
        "keeps its width": "; ".join(f"{n} x {why}" for why, n in stays.most_common(2)) or "-",
    }


@pytest.mark.parametrize("name", TORCHVISION + TIMM, indirect=True)
def test_a_student_computes_what_the_teacher_does_with_the_lost_channels_silenced(name):
    teacher, inputs = make(name)
    graph = trace(teacher, inputs)
    rng = np.random.default_rng(1)
    modules = dict(teacher.named_modules())
    widths = {
        g.name: int(rng.integers(g.floor, g.size))
        for g in graph.groups.values()
        if not any(
            isinstance(modules.get(m.layer), (nn.LayerNorm, nn.GroupNorm)) for m in g.members
        )  # statistics change
        and not any(pattern in g.name for pattern in MIXED.get(name, ()))
    }
    assert widths
    silenced = copy.deepcopy(teacher)
    for group, width in widths.items():
        silence(silenced, graph, group, ~graph.groups[group].kept(width))
    student = build_student(teacher, graph, Plan.of((), widths))
    with torch.no_grad():
        expected = silenced(inputs)
        assert not torch.allclose(expected, teacher(inputs), rtol=1e-3)
        torch.testing.assert_close(student(inputs), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", FURTHER, indirect=True)
def test_students_of_a_further_network_are_what_they_are_said_to_be(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        check_teacher(*further(name), plans=4)


MIXED = {"efficientformerv2_s0": ("token_mixer", "attn")}
"""Attention heads that are mixed after the softmax: a silent one still attends, so that the networks differ."""


@torch.no_grad()
def silence(network: nn.Module, graph: LayerGraph, group: str, lost: np.ndarray) -> None:
    """Set whatever produces or scales the lost channels to 0; of attention heads, whatever reads them."""
    for member in graph.groups[group].members:
        position = torch.from_numpy(member.position[lost[member.channel]])
        if member.side.isdigit():
            network.get_parameter(member.layer).index_fill_(int(member.side), position, 0.0)
        elif member.side == "values":
            layer = network.get_submodule(member.layer)
            rule_of(layer).projection(layer).weight.index_fill_(1, position, 0.0)
        elif member.side == "out":
            for parameter in network.get_submodule(member.layer).parameters(recurse=False):
                parameter.index_fill_(0, position, 0.0)
