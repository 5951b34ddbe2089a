"""Layers, layouts and types as people bring them: each computes what its teacher does, shrinks, and is refitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import random_plan
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.data import TensorDataset

from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery import refit
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.teachers import load_teacher


def made(factory, shape, seed=0):
    """The network in evaluation mode, with normalisation statistics as after training, and four inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = factory()
        with torch.no_grad():
            teacher.train()(torch.randn(16, *shape))
        return teacher.eval(), torch.randn(4, *shape)


def check(teacher, example, plans=6):
    """The graph, once the unchanged network is rebuilt bit for bit and random students run and cost what was predicted."""
    graph = trace(teacher, example)
    with torch.no_grad():
        expected = teacher(example.clone())
        assert torch.equal(build_student(teacher, graph, Plan())(example), expected)
        rng = np.random.default_rng(0)
        for plan in [graph.canonical(frozenset(), graph.floor), *(random_plan(graph, rng) for _ in range(plans))]:
            student, view = build_student(teacher, graph, plan), graph.view(frozenset(plan.removed))
            assert student(example).shape == expected.shape
            assert sum(p.numel() for p in student.parameters()) == view.parameters(graph.widths(plan))
    return graph


def problem_of(teacher, shape, dtype=torch.float32, examples=60):
    """A problem with random data for this network."""
    generator = torch.Generator().manual_seed(1)
    sets = [TensorDataset(torch.randn(n, *shape, generator=generator).to(dtype), torch.arange(n) % 3) for n in (examples, 12)]
    return Problem.build(ProblemSpec(teacher=teacher, data=tuple(sets)))


class ViewNet(nn.Module):
    """LeNet's way from maps to features."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8 * 16, 3)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.out(x.view(x.size(0), -1))


class Volume(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 6, 3, padding=1), nn.AdaptiveAvgPool3d(1),
            nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip


class Filter(nn.Module):
    """A global filter as in GFNet: a complex weight, stored as two real numbers each on the last of four axes."""

    def __init__(self):
        super().__init__()
        self.patch, self.weight = nn.Conv2d(2, 6, 2, 2), nn.Parameter(torch.randn(4, 3, 6, 2))
        self.mlp, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.weight)
        x = x + self.mlp(torch.fft.irfft2(y, s=(4, 4), dim=(1, 2), norm="ortho"))
        return self.out(x.mean((1, 2)))


class Untraced(nn.Module):
    """A part whose forward depends on values, so that it is not traced, and looks at the layout."""

    def forward(self, x):
        if x.sum() > 1e9:
            return x.flatten(1)
        return x.view(x.shape[0], -1)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3)
        self.flat, self.out = Untraced(), nn.Linear(6 * 16, 3)

    def forward(self, x):
        return self.out(self.flat(F.relu(self.b(F.relu(self.a(x))))))


LAYOUTS = {
    "view": (ViewNet, (2, 8, 8)), "volume": (Volume, (1, 4, 6, 6)), "complex": (Filter, (2, 8, 8)), "untraced": (Opaque, (2, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore::compress_env.surgery.tracer.NotTraced")
def test_networks_that_look_at_the_layout_are_searched_in(name):
    factory, shape = LAYOUTS[name]
    teacher, example = made(factory, shape)
    assert trace(teacher, example).plain_layout == (name == "untraced")
    problem = problem_of(teacher, shape)
    evaluator = Evaluator(problem, EvaluatorSettings(distill_steps=2, batch_size=8))
    with torch.no_grad():
        torch.testing.assert_close(evaluator.teacher_outputs, teacher(evaluator.validation.inputs), rtol=1e-4, atol=1e-5)
    for widths in (problem.graph.full, problem.graph.floor):
        assert evaluator(problem.graph.canonical(frozenset(), widths)).failed == ""


def test_only_weights_of_convolutions_of_images_are_laid_out_channels_last():
    from compress_env.surgery.layout import channels_last

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bare = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(2, 3, 4, 5))

    net = Net()
    with channels_last(net):
        assert net.conv.weight.is_contiguous(memory_format=torch.channels_last) and net.bare.is_contiguous()
    assert net.conv.weight.is_contiguous()


def test_a_bfloat16_teacher_is_searched():
    teacher, _ = made(ViewNet, (2, 8, 8))
    problem = problem_of(teacher.bfloat16(), (2, 8, 8), torch.bfloat16)
    evaluator = Evaluator(problem, EvaluatorSettings(distill_steps=2, batch_size=8))
    assert evaluator(problem.graph.canonical(frozenset(), problem.graph.floor)).failed == ""
    with torch.no_grad():
        own = teacher.double()(evaluator.validation.inputs.double()).float()
    torch.testing.assert_close(evaluator.teacher_outputs, own, rtol=1e-4, atol=1e-5)


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "mask": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_from_others_are_folded(name):
    def factory():
        wrap = COMPUTED[name]
        return nn.Sequential(wrap(nn.Conv2d(2, 6, 3)), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), wrap(nn.Linear(96, 3)))

    teacher, example = made(factory, (2, 8, 8))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    folded = load_teacher(teacher).module
    assert sorted(folded.state_dict()) == sorted(["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"])
    assert all(p.requires_grad for p in folded.parameters())
    with torch.no_grad():
        assert torch.equal(folded(example), teacher(example))
    with pytest.raises(UserError, match="weights of '0' are computed from others.*load_teacher"):
        trace(teacher, example)
    assert check(folded, example).groups.keys() == {"0", "2"}
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


class Mixer(nn.Module):
    """A block of MLP-Mixer: one network along the tokens, one along the channels."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.fc = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Linear(12, 3)
        self.tokens = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.fc((x + self.channels(x)).mean(1))


class Folded(Mixer):
    """The same with the channels on the axis of the batch."""

    def forward(self, x):
        x = self.patch(x).flatten(2)
        y = self.tokens(x.reshape(-1, 16)).reshape(x.shape)
        x = (x + y).transpose(1, 2)
        return self.fc((x + self.channels(x)).mean(1))


@pytest.mark.parametrize("kind", [Mixer, Folded])
def test_a_refit_takes_the_rows_of_the_channels_that_stay(kind, monkeypatch):
    torch.manual_seed(0)
    teacher, x = kind().eval(), torch.randn(40, 3, 16, 16)
    graph = trace(teacher, x[:2])
    plan = Plan.of(widths={"patch": 7, "tokens.0": 6})
    students = []
    for part, rows in ((40, 16), (15, 1000), (15, 16)):  # at once; in parts of which the last is smaller; so and every so many rows
        monkeypatch.setattr(refit, "part_size", lambda *_, part=part: part)
        monkeypatch.setattr(refit, "ROWS", rows)
        students.append(build_student(teacher, graph, plan))
        fit = refit.Refit(build_student(teacher, graph, Plan()), graph, x)
        fit(students[-1], plan)
    assert fit.strides["tokens.0"] == 1 + (480 // (16 * 16) > 1)
    inherited = build_student(teacher, graph, plan)
    with torch.no_grad():
        before, *after = (float((s(x) - teacher(x)).square().mean()) for s in (inherited, *students))
    assert max(after) < before / 2 and max(after) < 1.2 * min(after)
    for name, value in students[0].named_parameters():
        torch.testing.assert_close(value, students[1].get_parameter(name), rtol=1e-3, atol=1e-4)
    kept, hidden = (np.flatnonzero(graph.groups[name].kept(n)) for name, n in (("patch", 7), ("tokens.0", 6)))
    if kind is Mixer:  # what the first of its layers reads has changed; it gives nearly what the teacher's does for these channels
        with torch.no_grad():
            target = teacher.tokens[0](teacher.norm(teacher.patch(x).flatten(2).mT).mT)[:, kept][..., hidden]
            read = inherited.norm(inherited.patch(x).flatten(2).mT).mT
            worse, *better = (float((s.tokens.get_submodule("0")(read) - target).square().mean()) for s in (inherited, *students))
        assert max(better) < 0.97 * worse
