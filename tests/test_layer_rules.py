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


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.LazyConv2d(8, 3, padding=1), nn.Linear(8, 5)
        self.function = [function]

    def forward(self, x):
        return self.fc(F.relu(self.b(self.function[0](F.relu(self.a(x))))).mean((2, 3)))


def heads(x):
    return x.flatten(2).mT.unflatten(2, (3, 4)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2).mT.unflatten(2, (8, 8))


def masked(x):
    return joined(F.scaled_dot_product_attention(attn_mask=torch.ones(64, 64), value=heads(x), key=heads(2 * x), query=heads(3 * x)))


NAMED = {
    "roll": (lambda x: torch.roll(x, 2, 1) + x, lambda x: torch.roll(x, dims=1, shifts=2) + x),
    "roll places": (lambda x: torch.roll(x, 1, 2) + x, lambda x: torch.roll(dims=(2,), shifts=1, input=x) + x),
    "roll all": (lambda x: torch.roll(x, (2,), ()) + x, lambda x: x.roll(shifts=2) + x),
    "flip": (lambda x: x.flip((1, 2)) + x, lambda x: x.flip(1, 2) + x),
    "flip one": (lambda x: torch.flip(x, [1]) + x, lambda x: torch.flip(dims=(1,), input=x) + x),
    "narrow": (lambda x: x.narrow(1, 2, 8), lambda x: x.narrow(start=2, length=8, dim=1)),
    "narrow places": (lambda x: x.narrow(2, 1, 4), lambda x: x.narrow(length=4, start=1, axis=2)),
    "chunk": (lambda x: torch.cat([2 * c for c in x.chunk(2, 1)], 1),
              lambda x: torch.cat(axis=1, tensors=[2 * c for c in torch.chunk(axis=1, chunks=2, input=x)])),
    "split": (lambda x: torch.cat((x.split([4, 8], 1)[1], x), 1),
              lambda x: torch.cat((x.split(dim=1, split_size=[4, 8])[1], x), dim=1)),
    "unbind": (lambda x: x.unbind(2)[1].unsqueeze(2) + x, lambda x: x.unbind(axis=2)[1].unsqueeze(2) + x),
    "stack": (lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2),
              lambda x: torch.stack(axis=2, tensors=[x, 2 * x]).flatten(end_dim=2, start_dim=1)),
    "mean": (lambda x: x * x.mean((2, 3), True), lambda x: x * x.mean(keepdim=True, axis=(2, 3))),
    "norm": (lambda x: x / (1 + x.norm(dim=(2, 3), p=1, keepdim=True)), lambda x: x / (1 + x.norm(1, (2, 3), True))),
    "std": (lambda x: x / (1 + x.std(unbiased=False)), lambda x: x / (1 + x.std(False))),
    "max": (lambda x: x * torch.max(x, 1, True)[0], lambda x: x * torch.max(x, axis=1, keepdim=True)[0]),
    "bmm": (lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT * 2).bmm(x.flatten(2)).unflatten(2, (8, 8)),
            lambda x: torch.bmm(mat2=x.flatten(2).mT * 2, input=x.flatten(2)).bmm(mat2=x.flatten(2)).unflatten(2, (8, 8))),
    "attention": (lambda x: joined(F.scaled_dot_product_attention(heads(3 * x), heads(2 * x), heads(x), torch.ones(64, 64))), masked),
    "view": (lambda x: x.view(-1, 3, 4, 8, 8).flatten(1, 2), lambda x: x.view(size=(-1, 3, 4, 8, 8)).flatten(1, 2)),
    "reshape": (lambda x: x.reshape(-1, 12, 64)[..., None], lambda x: torch.reshape(shape=(-1, 12, 64), input=x)[..., None]),
    "unflatten": (lambda x: x.unflatten(1, (3, 4)).flatten(1, 2), lambda x: x.unflatten(sizes=(3, 4), dim=1).flatten(1, 2)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), lambda x: torch.repeat_interleave(dim=1, repeats=2, input=x)),
    "expand": (lambda x: x + x.mean((2, 3), True).expand(-1, 12, 8, 8),
               lambda x: x + x.mean((2, 3), True).expand(size=(-1, 12, 8, 8))),
}  # fmt: skip
"""The same with arguments as most write them, and by name in another order, or in another way."""


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_arguments_may_be_given_in_any_way(name):
    x, found = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), []
    for function in NAMED[name]:
        torch.manual_seed(0)
        net = Between(function).eval()
        net(x)
        graph = trace(net, x)
        student = build_student(net, graph, graph.canonical(frozenset(), graph.floor))
        found.append((graph.groups.keys(), dict(graph.left_alone), student(x)))
    (groups, why, outputs), (other, too, same) = found
    assert groups == other and why == too and torch.equal(outputs, same)


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_that_are_repeated_one_by_one_shrink(axis):
    torch.manual_seed(0)
    net = Between(lambda x: x.repeat_interleave(2, axis).unflatten(0, (-1, 2 - axis)).sum(1)).eval()
    x = torch.randn(2, 3, 8, 8)
    net(x)
    assert trace(net, x).groups.keys() == {"a", "b"}
    check_teacher(net, x, plans=3)


class Embedded(nn.Module):
    """A position embedding of 4 x 4 places that is resampled to those of the image, as of ViTs for images of any size."""

    def __init__(self):
        super().__init__()
        self.patch, self.places = nn.Conv2d(3, 12, 2, 2), nn.Parameter(torch.randn(1, 16, 12))
        self.b, self.fc = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x):
        places = F.interpolate(self.places.unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=x.shape[-1] // 2, mode="bicubic")
        return self.fc(self.b(self.patch(x).flatten(2).mT + places.flatten(2).mT).relu().mean(1))


def test_a_position_embedding_that_is_resampled_shrinks_with_its_channels():
    torch.manual_seed(0)
    net, x = Embedded().eval(), torch.randn(2, 3, 12, 12)
    graph = trace(net, x)
    assert graph.groups.keys() == {"patch", "b"}
    check_teacher(net, x, plans=3)
    student, lost = build_student(net, graph, Plan.of(widths={"patch": 5})), torch.from_numpy(~graph.groups["patch"].kept(5))
    with torch.no_grad():
        net.patch.weight[lost] = net.patch.bias[lost] = 0
        net.places[..., lost] = 0
        torch.testing.assert_close(student(x), net(x), rtol=1e-5, atol=1e-6)


def test_attention_with_one_head_over_fewer_places_than_channels_is_counted():
    torch.manual_seed(0)
    net = Between(lambda x: (x.flatten(2) @ (x.flatten(2).mT @ x.flatten(2)).softmax(-1)).unflatten(2, x.shape[2:])).eval()
    x = torch.randn(2, 3, 2, 4)
    net(x)
    assert trace(net, x).groups.keys() == {"a", "b"}
    check_teacher(net, x, plans=3)


@pytest.mark.parametrize("names", [{"dims": 1, "shifts": 2}, {"shifts": 2}, {"shifts": (2, 1), "dims": (1, 2)}], ids=str)
def test_channels_that_are_rolled_stay(names):
    torch.manual_seed(0)
    net, x = Between(lambda x: torch.roll(x, **names) + x).eval(), torch.randn(2, 3, 8, 8)
    net(x)
    graph = trace(net, x)
    assert list(graph.groups) == ["b"] and graph.left_alone["a"] == "roll moves part of its axis"
