"""Layers of types derived from PyTorch's, with a forward of their own: they follow their rule if it holds, or are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit
from compress_env.surgery.trace import trace


class Same(nn.Conv2d):
    """Pads by the size of its input, as TensorFlow does."""

    def forward(self, x):
        pad = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[-1:-3:-1], self.kernel_size[::-1], self.stride[::-1])]
        x = F.pad(x, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Standardises each filter, with a gain for each."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w * self.gain, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Logged(nn.Conv2d):
    def forward(self, x):
        assert x.dim() == 4
        return super().forward(x)


class Mixing(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).cumsum(1)


class Shuffled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Wider(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x)
        return torch.cat([y, y.mean((1,), keepdim=True)], 1)


class Gated(nn.Conv2d):
    """Only what it calls itself is its own."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias).cumsum(1)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Sorted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).sort(1)[0]


HOLDS = {Same: True, Standardised: True, Logged: True, Mixing: False, Shuffled: False, Wider: False, Gated: False}


def network(kind, norm=nn.BatchNorm2d, stride=1):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.own = nn.Conv2d(3, 8, 3, padding=1), kind(8, 8, 3, stride, padding=0 if kind is Same else 1)
            self.norm, self.after = norm(9 if kind is Wider else 8), nn.Conv2d(9 if kind is Wider else 8, 8, 3, padding=1)
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(F.relu(self.after(self.norm(self.own(F.relu(self.stem(x)))))).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Net(), torch.randn(32, 3, 7, 7)
    with torch.no_grad():
        net(x)
    return net.eval(), x


@pytest.mark.parametrize("kind", HOLDS, ids=lambda k: k.__name__)
def test_a_layer_of_a_derived_type_shrinks_if_its_channels_can_change_places(kind):
    teacher, x = network(kind, stride=2)
    graph = trace(teacher, x[:2])
    assert ("own" in graph.groups) == HOLDS[kind]
    assert HOLDS[kind] or graph.left_alone["stem"] == f"own ({kind.__name__}) has no rule for shrinking"
    with torch.no_grad():
        assert torch.equal(build_student(teacher, graph, Plan())(x), teacher(x))
        small = build_student(teacher, graph, graph.canonical(frozenset(), graph.floor))
        assert small(x).shape == (32, 3)
    assert sum(p.numel() for p in small.parameters()) == graph.view(frozenset()).parameters(graph.floor)
    if kind is Same:  # exactly what the teacher computes with the lost channels silenced
        student = build_student(teacher, graph, Plan.of(widths={"own": 3}))
        kept = graph.groups["own"].kept(3)
        with torch.no_grad():
            teacher.norm.weight[~kept] = teacher.norm.bias[~kept] = 0
            torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, shrinks", [(Activated, True), (Sorted, False)])
def test_so_does_a_normalisation(kind, shrinks):
    teacher, x = network(nn.Conv2d, kind)
    graph = trace(teacher, x[:2])
    assert ("own" in graph.groups) == shrinks
    with torch.no_grad():
        assert torch.equal(build_student(teacher, graph, Plan())(x), teacher(x))
        assert np.isfinite(build_student(teacher, graph, graph.canonical(frozenset(), graph.floor))(x).numpy()).all()


@pytest.mark.parametrize("kind, fitted", [(Same, False), (Standardised, False), (Logged, True)])
def test_a_refit_changes_the_weights_of_those_layers_alone_that_compute_with_them_as_they_are(kind, fitted):
    teacher, x = network(kind, stride=2)
    graph = trace(teacher, x[:2])
    refit = Refit(build_student(teacher, graph, Plan()), graph, x)
    assert set(refit.targets) == {"stem", "after", "fc"} | ({"own"} if fitted else set())
    plan = Plan.of(widths={"stem": 4})
    student, inherited = build_student(teacher, graph, plan), build_student(teacher, graph, plan)
    refit(student, plan)
    assert torch.equal(student.own.weight, inherited.own.weight) != fitted
    with torch.no_grad():
        before, after = ((s(x) - teacher(x)).square().mean() for s in (inherited, student))
    assert after < before / 2


def test_a_normalisation_with_an_activation_keeps_it_in_a_refit():
    teacher, x = network(nn.Conv2d, Activated)
    graph = trace(teacher, x[:2])
    plan = Plan.of(widths={"stem": 4})
    student, inherited = build_student(teacher, graph, plan), build_student(teacher, graph, plan)
    Refit(build_student(teacher, graph, Plan()), graph, x)(student, plan)
    with torch.no_grad():
        read = student.own(F.relu(student.stem(x)))
        torch.testing.assert_close(student.norm.running_mean, read.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        assert (student(x) - teacher(x)).square().mean() < (inherited(x) - teacher(x)).square().mean() / 2
