"""Large networks and large data: in parts, and as they lie on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress_env.problem import Problem
from compress_env.spec import ProblemSpec
from compress_env.surgery import layerwise
from compress_env.surgery.build import build_student
from compress_env.surgery.layerwise import part_size
from compress_env.surgery.ranking import reconstruction
from compress_env.surgery.refit import Refit, renormalise


@pytest.fixture(scope="module")
def mobilenet() -> Problem:
    return Problem.build(ProblemSpec(teacher="mobilenetv2-digits", ranking="magnitude"))


def in_parts(monkeypatch, graph, inputs, size: int) -> None:
    """Have that many inputs run in parts of `size`."""
    each = int(graph.view(frozenset()).activation_bytes(graph.full))
    monkeypatch.setattr(layerwise, "WHOLE", each * inputs - 1)
    monkeypatch.setattr(layerwise, "PART", each * size)


def test_small_passes_are_whole_and_large_ones_in_parts_that_fit(mobilenet, monkeypatch):
    graph, cpu = mobilenet.graph, torch.device("cpu")
    assert part_size(graph, 512, cpu) == 512
    in_parts(monkeypatch, graph, 100, 7)
    assert (part_size(graph, 99, cpu), part_size(graph, 100, cpu)) == (99, 7)
    assert part_size(graph, 100, torch.device("cuda")) == 100
    monkeypatch.setattr(layerwise, "PART", 1)
    assert part_size(graph, 100, cpu) == 1


def test_a_ranking_in_parts_takes_the_same_samples(mobilenet, monkeypatch):
    graph, x = mobilenet.graph, mobilenet.data.calibration(100)
    monkeypatch.setattr(reconstruction, "NUMBERS", 2**15)  # fewer than there are, so that some are left out
    moments = []
    for size in (100, 7):
        sampler = reconstruction._Sampler(mobilenet.whole, graph, 100)
        with torch.no_grad():
            for part in x.split(size):
                sampler.run(part)
                sampler.seen += len(part)
        moments.append(sampler.moments)
    assert moments[0].keys() == moments[1].keys()
    for name, found in moments[0].items():
        for a, b in zip(found, moments[1][name], strict=True):
            assert np.abs(a - b).max() < 1e-4 * np.abs(a).max(), name
    whole = reconstruction._orders(mobilenet.whole, graph, x)
    in_parts(monkeypatch, graph, 100, 7)
    for name, (order, _) in reconstruction._orders(mobilenet.whole, graph, x).items():
        assert (order == whole[name][0]).double().mean() > 0.9, name  # ties go either way with rounding


def test_a_refit_in_parts_gives_the_same_student(mobilenet, monkeypatch):
    graph, x = mobilenet.graph, mobilenet.data.calibration(60)
    plan = graph.canonical(frozenset([next(iter(graph.blocks))]), graph.allowed(graph.full * 0.6))
    whole = build_student(mobilenet.teacher.module, graph, plan)
    Refit(mobilenet.whole, graph, x)(whole, plan)
    in_parts(monkeypatch, graph, 60, 7)
    parts = build_student(mobilenet.teacher.module, graph, plan)
    Refit(mobilenet.whole, graph, x)(parts, plan)
    fresh = build_student(mobilenet.teacher.module, graph, plan)
    test = mobilenet.data.calibration(200)
    with torch.no_grad():
        expected, found, before = whole(test), parts(test), fresh(test)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    assert (before - expected).abs().max() > 0.1 * expected.abs().max()
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        if "running" in name:
            assert torch.allclose(a, b, rtol=1e-2, atol=1e-3), name


def test_statistics_of_parts_are_those_of_the_whole(mobilenet):
    x = mobilenet.data.calibration(50)
    student = build_student(mobilenet.teacher.module, mobilenet.graph, mobilenet.graph.canonical(frozenset(), mobilenet.graph.full))
    renormalise(student, x.split([20, 7, 23]))
    norm = next(m for m in student.modules() if hasattr(m, "running_mean"))
    conv = next(m for m in student.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        read = conv(x).double()
    assert np.allclose(norm.running_mean, read.mean((0, 2, 3)), atol=1e-5)
    assert np.allclose(norm.running_var, read.var((0, 2, 3), correction=0), rtol=1e-4)


def test_what_is_read_last_is_held_no_longer(mobilenet):
    student = build_student(mobilenet.teacher.module, mobilenet.graph, mobilenet.graph.canonical(frozenset(), mobilenet.graph.full))
    held: list[int] = []

    class Counting(layerwise.Layerwise):
        def run_node(self, node):
            super().run_node(node)
            held.append(max(len(run.env) for run in self.runs))

    with torch.no_grad():
        Counting(student).run(mobilenet.data.calibration(6).split(2))
    assert max(held) <= 3  # a value, the one that is made of it, and one that a later addition reads
