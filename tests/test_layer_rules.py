"""Rules for layers and functions that people use: transposed convolutions, maxima over channels, blurring, channel attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit
from compress_env.surgery.rules import rule_of
from compress_env.surgery.trace import trace
from compress_env.testing import check_rule, check_teacher

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("rank", TRANSPOSED)
@pytest.mark.parametrize("channels", [(8, 6, 1), (8, 8, 8), (8, 12, 4), (8, 12, 2), (16, 8, 8)], ids=str)
def test_transposed_convolutions_shrink_as_their_rule_says(rank, channels):
    inputs, outputs, groups = channels
    torch.manual_seed(0)
    layer = TRANSPOSED[rank](inputs, outputs, 3, 2, 1, output_padding=1, groups=groups).eval()
    check_rule(layer, torch.randn(2, inputs, *[3] * rank), plans=3)


def test_transposed_convolutions_cost_what_is_computed_by_hand():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ConvTranspose2d(8, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    x = torch.randn(2, 1, 4, 5)
    graph = trace(net, x)
    assert {name: g.size for name, g in graph.groups.items()} == {"0": 8, "1": 6}
    view = graph.view(frozenset())
    for a, b in ((8, 6), (3, 5)):
        widths = np.array([a, b])
        # each of the 4 x 5 inputs is multiplied with 3 x 3 weights; the output is (4 - 1) * 2 + 3 = 9 by (5 - 1) * 2 + 3 = 11
        assert view.macs(widths) == 20 * a + 20 * a * b * 9 + 99 * b * 2
        assert view.parameters(widths) == 2 * a + (a * b * 9 + b) + (b * 2 + 2)
    student = build_student(net, graph, Plan.of(widths={"0": 3, "1": 5}))
    kept = [np.flatnonzero(graph.groups[name].kept(n)) for name, n in (("0", 3), ("1", 5))]
    assert torch.equal(student.get_submodule("1").weight, net[1].weight[kept[0]][:, kept[1]])


SETTINGS = [(3, 2, 1, 1), (4, 2, 1, 0), (2, 2, 0, 0), (3, 1, 2, 0), ((3, 2), (1, 3), (0, 1), (0, 2))]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_a_transposed_convolution_reads_times_its_weights_is_what_it_gives(settings):
    kernel, stride, padding, more = settings
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 5, kernel, stride, padding, more, dilation=2 if stride == 1 else 1).eval()
    x = torch.randn(3, 4, 5, 6)
    rule, y = rule_of(layer), layer(x)
    everywhere = list(np.ndindex(*y.shape[2:]))
    weight = rule.weight(layer, "in").flatten(1)
    found = F.linear(rule.read(layer, "in", (x,), {}, everywhere), weight, layer.bias)
    torch.testing.assert_close(found, rule.written(layer, y, everywhere), rtol=1e-4, atol=1e-5)
    assert torch.equal(rule.formula(layer, x), y)


def test_a_refit_finds_the_weights_of_a_transposed_convolution():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(),
        nn.Linear(4 * 36, 3),
    ).eval()  # fmt: skip
    x = torch.randn(64, 3, 8, 8)
    graph, plan = trace(net, x[:2]), Plan.of(widths={"0": 7})
    student, inherited = build_student(net, graph, plan), build_student(net, graph, plan)
    Refit(build_student(net, graph, Plan()), graph, x)(student, plan)
    with torch.no_grad():
        chains = [nn.Sequential(*s.children())[:3] for s in (inherited, student)]
        before, after = ((chain(x) - net[:3](x)).square().mean() for chain in chains)
        assert after < before / 1.8
        assert (student(x) - net(x)).square().mean() < (inherited(x) - net(x)).square().mean() / 2


class Attention(nn.Module):
    """A gate of channels and one of places (CBAM), the latter from the largest and the mean channel at each."""

    def __init__(self, largest):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.mlp, self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8)), nn.Conv2d(2, 1, 3, padding=1)
        self.fc = nn.Linear(12, 3)
        self.largest = largest

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        x = x * torch.sigmoid(self.mlp(x.amax((2, 3)))).unsqueeze(2).unsqueeze(3)
        q = torch.cat([self.largest(x), x.mean(1, keepdim=True)], 1)
        return self.fc(F.relu(self.c(x * torch.sigmoid(self.gate(q)))).mean((2, 3)))


LARGEST = {
    "torch.max": lambda x: torch.max(x, 1)[0].unsqueeze(1),
    "keepdim": lambda x: torch.max(x, dim=1, keepdim=True)[0],
    "method": lambda x: x.max(1, keepdim=True).values,
    "min": lambda x: -torch.min(-x, 1, True)[0],
    "median": lambda x: x.median(dim=1, keepdim=True)[0],
    "over places": lambda x: x.max(3)[0].max(2).values.amax(1)[:, None, None, None].expand(-1, 1, 8, 8),
    "unpacked": lambda x: (lambda largest, _: largest)(*x.max(dim=1, keepdim=True)),
    "of two": lambda x: torch.max(x, -x).amax(1, keepdim=True),
}


@pytest.mark.parametrize("name", LARGEST)
def test_maxima_over_channels_leave_them_free(name):
    torch.manual_seed(0)
    net, x = Attention(LARGEST[name]).eval(), torch.randn(2, 3, 8, 8)
    assert trace(net, x).groups.keys() == {"a", "b", "mlp.0", "c"}
    check_teacher(net, x, plans=4)


def test_the_place_of_a_maximum_holds_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = Attention(lambda x: (lambda found: found[0] + found[1])(x.max(1, keepdim=True))).eval()
    graph = trace(net, x)
    assert "b" not in graph.groups and graph.left_alone["b"].endswith("tells which channel it chose")


class Blur(nn.Module):
    """A blur before a stride: one fixed filter for each channel."""

    def __init__(self, channels, way):
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = (taps[:, None] * taps / 16)[None, None]
        self.way, self.channels = way, channels
        if way in ("buffer", "counted"):
            kernel = kernel.repeat(channels, 1, 1, 1) * torch.arange(1, channels + 1).view(-1, 1, 1, 1)
        if way == "parameter":
            self.filt = nn.Parameter(torch.randn(channels, 1, 3, 3))
        else:
            self.register_buffer("filt", kernel, persistent=False)

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        if self.way == "expanded":
            return F.conv2d(x, self.filt.expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])
        if self.way == "counted":
            return F.conv2d(x, self.filt, None, 2, 0, 1, self.channels)
        return F.conv2d(x, self.filt, stride=2, groups=x.shape[1])


@pytest.mark.parametrize("way", ["buffer", "counted", "expanded", "parameter"])
def test_filters_of_channels_go_with_them(way):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Blur(8, way), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), Blur(6, way), nn.Flatten(),
        nn.Linear(24, 3),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    assert {name: g.size for name, g in graph.groups.items()} == {"0": 8, "3": 6}
    check_teacher(net, x, plans=4)
    student = build_student(net, graph, Plan.of(widths={"0": 3}))
    lost = torch.from_numpy(~graph.groups["0"].kept(3))
    with torch.no_grad():
        net[0].weight[lost] = net[0].bias[lost] = 0
        torch.testing.assert_close(student(x), net(x), rtol=1e-5, atol=1e-6)
    stored = {name: value.shape[0] for name, value in {**dict(student.named_buffers()), **dict(student.named_parameters())}.items()}
    assert way == "expanded" or (stored["2.filt"], stored["5.filt"]) == (3, 6)


class Efficient(nn.Module):
    """Efficient channel attention: a filter along the channels."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.conv, self.fc, self.way = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Linear(6, 3), way

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.way == "squeezed":
            y = F.adaptive_avg_pool2d(x, 1)
            y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        else:
            y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
        return self.fc(F.relu(self.b(x * y.sigmoid().expand_as(x))).mean((2, 3)))


@pytest.mark.parametrize("way", ["squeezed", "viewed"])
def test_a_filter_along_channels_runs_over_those_that_stay(way):
    torch.manual_seed(0)
    net, x = Efficient(way).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    assert {name: g.size for name, g in graph.groups.items()} == {"a": 10, "b": 6}
    check_teacher(net, x, plans=4)
    student = build_student(net, graph, Plan.of(widths={"a": 4}))
    kept = torch.from_numpy(graph.groups["a"].kept(4))
    with torch.no_grad():
        y = F.relu(net.a(x))[:, kept]
        gate = F.conv1d(y.mean((2, 3))[:, None], net.conv.weight, padding=1)[:, 0, :, None, None].sigmoid()
        expected = net.fc(F.relu(F.conv2d(y * gate, net.b.weight[:, kept], net.b.bias, padding=1)).mean((2, 3)))
        torch.testing.assert_close(student(x), expected, rtol=1e-5, atol=1e-6)


def test_transposed_attributes_move_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.b(self.a(x).relu().mT.mT).relu().mean(1))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 4, 5)
    assert trace(net, x).groups.keys() == {"a", "b"}
    check_teacher(net, x, plans=3)
