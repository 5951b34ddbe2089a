"""How a network is captured: everyday Python, structures of detectors and others, and what `forward` reads besides calling layers."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from networks import random_plan
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from compress_env.errors import UserError
from compress_env.export import rebuild_student, save_student
from compress_env.report.inspect import inspect
from compress_env.resources.cost_model import CostModel
from compress_env.surgery import verify
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit
from compress_env.surgery.trace import trace
from compress_env.surgery.tracer import NotTraced
from compress_env.surgery.writing import written

IMAGE = (3, 8, 8)


class Plain(nn.Module):
    """A residual network; subclasses do something of their own before its head."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.n = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.c, self.fc = nn.Conv2d(16, 24, 3, 2, 1), nn.Linear(24, 5)

    def features(self, x):
        x = self.a(x).relu()
        return self.c(x + self.n(self.b(x)).relu()).relu()

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Lengths(Plain):
    """Lengths, assertions, conditions on sizes, integers made of them, loops over channels."""

    def forward(self, x):
        assert x.shape[1] == 3 and len(x.shape) == 4, "colour images"
        if not isinstance(x, torch.Tensor) or x.shape[0] > 1000 or len(x) > 1000:
            x = -x
        half = int(x.shape[2] / 2)
        for i in range(x.shape[1]):
            x = x + 0.1 * x[:, i : i + 1]
        x = F.interpolate(x, (half * 2, math.floor(x.shape[-1]))) / math.sqrt(x.size(1))
        return self.fc(self.features(x).mean((2, 3)))


class Loops(Plain):
    """Lists that grow, loops over parts, dictionaries, a view with the number of examples in it."""

    def forward(self, x):
        parts = list(self.features(x).chunk(3, 1))
        parts.extend(p.sigmoid() for p in reversed(parts))
        found = {i: p for i, p in enumerate(parts)}
        x = torch.cat([found[i] for i in (0, 1, 2)], 1) + torch.cat([*parts[3:]][::-1], 1)
        b, c, h, w = (int(n) for n in x.shape)
        return self.fc(x.reshape(b * c, h * w).mean(1).reshape(b, c))


class Made(Plain):
    """Constants made in forward: with the number of examples, of another type, from a list, from numpy."""

    def forward(self, x):
        x = self.features(x)
        b, c, h, w = x.shape
        x = x + torch.arange(w, device=x.device) / w + torch.zeros(b, 1, h, w) + torch.tensor([0.5])
        x = x * torch.from_numpy(np.ones(w, np.float32)) + torch.zeros_like(x) + x.new_ones(h, 1)
        return self.fc(x.mean((2, 3)))


class Optional(Plain):
    """Arguments that a user may leave out."""

    def forward(self, x, mask=None, return_features=False, *, scale: float = 1.0):
        x = self.features(x) * scale
        if mask is not None:
            x = x * mask
        return x if return_features else self.fc(x.mean((2, 3)))


class Hidden(nn.Module):
    """A classifier on the last hidden state of an LSTM."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 16, 5, 2, 2), nn.Conv1d(16, 16, 5, 2, 2)
        self.rnn = nn.LSTM(16, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.one, self.fc = nn.Linear(24, 20), nn.Linear(20, 5)

    def forward(self, x):
        out, (h, c) = self.rnn(self.b(self.a(x).relu()).relu().transpose(1, 2))
        return self.fc(self.one(torch.cat([h[-2], h[-1], c[-2], c[-1]], 1) + out[:, -1].repeat(1, 2)).relu())


class Positions(nn.Module):
    """Positions in a buffer that is longer than the sequence."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.register_buffer("pe", torch.randn(1, 30, width))
        self.one, self.two, self.fc = nn.Linear(width, 40), nn.Linear(40, width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.pe[:, : x.size(1)]
        return self.fc((x + self.two(self.one(x).relu())).mean(1))


class Recurrent(nn.Module):
    """A recurrent convolution over a clip, whose state starts with zeros."""

    def __init__(self):
        super().__init__()
        self.gates, self.new = nn.Conv2d(40, 32, 3, 1, 1), nn.Conv2d(40, 16, 3, 1, 1)
        self.frame, self.c, self.fc = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1), nn.Linear(24, 5)

    def forward(self, x):
        b, t = x.shape[:2]
        frames = self.frame(x.flatten(0, 1)).relu().unflatten(0, (b, t))
        h = torch.zeros_like(frames[:, 0, :16])
        for i in range(t):
            r, z = self.gates(torch.cat([frames[:, i], h], 1)).sigmoid().split(16, 1)
            h = (1 - z) * h + z * self.new(torch.cat([frames[:, i], r * h], 1)).tanh()
        return self.fc(self.c(h).mean((2, 3)))


class Writes(Plain):
    """Parts of a tensor are written to; its first layers are wrapped for several devices."""

    def __init__(self):
        super().__init__()
        self.a, self.shift = nn.DataParallel(self.a, device_ids=[]), nn.Conv2d(24, 24, 1)

    def forward(self, x):
        x = self.shift(self.features(x)).relu()
        shifted, fold = torch.zeros_like(x), x.shape[1] // 4
        shifted[:, :fold, :, :-1] = x[:, :fold, :, 1:]
        shifted[:, fold:], shifted[..., 0] = x[:, fold:], 1
        return self.fc(shifted.mean((2, 3)))


class Cached(Plain):
    """What is computed from a parameter is kept for the next time, as in timm's LeViT and TinyViT."""

    def __init__(self):
        super().__init__()
        self.bias, self.bias_cache = nn.Parameter(torch.randn(4, 4)), {}

    def forward(self, x):
        if "bias" not in self.bias_cache:
            self.bias_cache["bias"] = self.bias[:2, :2].sigmoid()
        return self.fc((self.features(x) * self.bias_cache["bias"]).mean((2, 3)))


class Remembers(nn.Module):
    """A convolutional LSTM, whose state starts with zeros of a number of channels that is written down."""

    def __init__(self, hidden: int = 12):
        super().__init__()
        self.hidden, self.frame = hidden, nn.Conv2d(3, 20, 3, 2, 1)
        self.gates, self.fc = nn.Conv2d(20 + hidden, 4 * hidden, 3, 1, 1), nn.Linear(hidden, 5)

    def forward(self, x):
        x = [self.frame(x[:, i]).relu() for i in range(x.shape[1])]
        h = torch.zeros(len(x[0]), self.hidden, *x[0].shape[-2:], device=x[0].device)
        c = x[0].new_full((len(x[0]), self.hidden, *x[0].shape[-2:]), 0.5)
        for each in x:
            i, f, o, g = self.gates(torch.cat([each, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.fc(h.mean((2, 3)))


class Normalised(Plain):
    """Images are normalised inside the network, and a batch normalisation is frozen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.2]))
        self.n = FrozenBatchNorm2d(16)
        self.n.running_mean.normal_()
        self.scale = torch.tensor(0.9)

    def forward(self, x):
        x = (x - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        return super().forward(x * self.scale)


class Cast(Plain):
    """A layer's own parameters are asked for type, device and shape."""

    def forward(self, x):
        x = self.features(x.to(self.a.weight.dtype).type_as(self.b.weight).to(self.b.weight.device))
        return self.fc(x.mean((2, 3)).view(-1, self.c.weight.shape[0]) * self.c.weight.size(1) ** -0.5)


class TiedConvs(nn.Module):
    """Two convolutions share their weights, not their biases; a third has its own."""

    def __init__(self):
        super().__init__()
        self.a, self.h1, self.h2 = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.b1, self.b2, self.c, self.fc = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.Conv2d(16, 12, 3, 1, 1), nn.Linear(12, 5)
        self.h2.weight, self.b2.running_mean = self.h1.weight, self.b1.running_mean

    def forward(self, x):
        x = self.a(x).relu()
        x = x + self.b1(self.h1(x)).relu()
        x = x + self.b2(self.h2(x)).relu()
        return self.fc(self.c(x).relu().mean((2, 3)))


class TiedAutoencoder(nn.Module):
    """A decoder with the transposed weights of the encoder, and a bias that is added a second time."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.enc = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1), nn.Linear(16, 12)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.b(self.a(x).relu() + self.a.bias.view(1, -1, 1, 1)).relu().mean((2, 3))
        return self.fc(F.linear(self.enc(x).relu(), self.enc.weight.t()).relu())


class Ours(nn.Module):
    """Two linear layers that share weights, in a module that looks at its numbers."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight

    def forward(self, x):
        self.last = y = self.two(self.one(x).relu())  # with its history, which copies leave behind
        return y if y.sum() > 1e9 else x + y


class TiedInside(nn.Module):
    """Such a module in a network, whose head has the same weights once more."""

    def __init__(self):
        super().__init__()
        self.a, self.ours, self.head = nn.Conv2d(3, 16, 3, 2, 1), Ours(), nn.Linear(16, 16)
        self.head.weight, self.b = self.ours.one.weight, nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(self.ours((x + self.b(x).relu()).mean((2, 3))))


CAPTURED = {
    "lengths": (Lengths, IMAGE, 1, 2), "loops": (Loops, IMAGE, 1, 2), "made": (Made, IMAGE, 1, 2),
    "optional": (Optional, IMAGE, 1, 2), "hidden": (Hidden, (3, 32), 1, 3), "positions": (Positions, IMAGE, 1, 1),
    "writes": (Writes, IMAGE, 1, 1), "cached": (Cached, IMAGE, 1, 2), "remembers": (Remembers, (3, 3, 8, 8), 0, 2),
    "recurrent": (Recurrent, (3, 3, 8, 8), 0, 1),
    "normalised": (Normalised, IMAGE, 1, 2), "cast": (Cast, IMAGE, 1, 2), "tied-convs": (TiedConvs, IMAGE, 2, 1),
    "tied-autoencoder": (TiedAutoencoder, IMAGE, 0, 1),
}  # fmt: skip
"""By name: the network, the shape of an input, the blocks that can be removed, and the least number of groups."""


def checked(teacher: nn.Module, shape: tuple[int, ...], plans: int = 5) -> LayerGraph:
    """The graph of a network: it is rebuilt bit for bit for any number of examples, and students cost what was predicted."""
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    teacher(example)
    graph = trace(teacher, example)
    unchanged = build_student(teacher, graph, Plan())
    with torch.no_grad():
        for count in (1, 2, 7):
            x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))
            assert torch.equal(unchanged(x), teacher(x))
    assert {key.removeprefix("network.") for key in unchanged.state_dict()} >= teacher.state_dict().keys()
    cost_model = CostModel(teacher, graph, example)
    assert cost_model.teacher["params"] == sum(p.numel() for p in teacher.parameters())
    rng = np.random.default_rng(0)
    for _ in range(plans):
        plan = random_plan(graph, rng)
        student = build_student(teacher, graph, plan)
        usage, predicted = cost_model.count(student, plan), cost_model.predict_all(frozenset(plan.removed), graph.widths(plan))
        assert usage["params"] == predicted["params"] == sum(p.numel() for p in student.parameters())
        assert usage == pytest.approx(predicted, rel=1e-12)
        student.train()(torch.cat([example, example])).square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    return graph


def made(network, *arguments) -> nn.Module:
    """A network with weights that are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network(*arguments).eval()


@pytest.mark.parametrize("name", CAPTURED)
def test_everyday_python_is_followed(name):
    network, shape, blocks, groups = CAPTURED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = checked(made(network), shape)
    assert len(graph.blocks) >= blocks and len(graph.groups) >= groups, dict(graph.left_alone)


class Choosy(Plain):
    """A network that looks at its numbers."""

    def forward(self, x):
        return super().forward(x) if x.mean() > 1e9 else super().forward(-x)


def test_a_network_that_nothing_can_follow_is_one_layer_and_is_told_so():
    why = r"Choosy cannot be traced \(test_capture.py:\d+: it looks at the numbers in a tensor\); no layer of it can be removed"
    with pytest.warns(NotTraced, match=why):
        graph = checked(made(Choosy), IMAGE)
    assert list(graph.layers) == ["network"] and not graph.blocks and graph.groups
    with pytest.warns(NotTraced):
        found = inspect(made(Choosy), IMAGE)
    assert found.only_shrink == {"network": "it cannot be traced"} and len(found.rows) == len(graph.groups)
    assert "network.b" in str(found) and "Stays as it is" not in str(found)


def test_only_what_cannot_be_followed_is_one_layer():
    teacher = nn.Sequential(nn.Conv2d(3, 3, 3), made(Plain), nn.Sequential(nn.Linear(5, 5), Ours(5)))
    with pytest.warns(NotTraced, match=r"^2.1 \(Ours\) cannot be traced") as warned:
        graph = checked(teacher.eval(), IMAGE)
    assert len(warned) == 1 and {"1.a", "2.0", "2.1"} <= graph.layers.keys() and {"1.b", "2.1"} <= graph.blocks.keys()


@pytest.mark.parametrize(("layer", "left"), [("", "network"), ("1.b", "1"), ("0", "network")])
def test_a_part_that_is_not_rebuilt_as_predicted_is_one_layer(layer, left, monkeypatch):
    teacher, real = nn.Sequential(nn.Conv2d(3, 3, 3), made(Plain), nn.Linear(5, 5)).eval(), verify.trial

    def trial(model, graph, plan, examples):
        return real(model, graph, plan, examples) if left in graph.layers else "7 parameters expected, 8 built"

    monkeypatch.setattr(verify, "trial", trial)
    monkeypatch.setattr(verify, "_where", lambda model, graph: layer)
    with pytest.warns(NotTraced, match=r"cannot be traced \(.*7 parameters expected, 8 built"):
        graph = checked(teacher, IMAGE)
    assert left in graph.layers
    monkeypatch.setattr(verify, "trial", lambda *_: "7 parameters expected, 8 built")
    with pytest.warns(NotTraced), pytest.raises(UserError, match="Sequential cannot be compressed: .*7 parameters expected"):
        trace(teacher, torch.zeros(1, *IMAGE))


def test_what_is_traced_wrongly_is_followed_in_another_way_or_is_one_layer():
    class Sneaky(Plain):
        def forward(self, x):
            return super().forward(x if isinstance(x, torch.Tensor) else -x)  # symbols are no tensors

    teacher, x = made(Sneaky), torch.randn(2, *IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = trace(teacher, torch.zeros(1, *IMAGE))
    assert len(graph.blocks) == 1 and torch.equal(build_student(teacher, graph, Plan())(x), teacher(x))


class Numpy(nn.Module):
    """A layer that looks at its numbers with numpy."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        return self.fc(x) / float(np.clip(x.detach().numpy().std(), 1.0, 2.0))


def test_a_part_that_looks_at_its_numbers_with_numpy_is_one_layer():
    teacher = nn.Sequential(made(Plain), nn.ReLU(), Numpy(), nn.Linear(5, 5)).eval()
    with pytest.warns(NotTraced, match=r"^2 \(Numpy\) cannot be traced"):
        graph = checked(teacher, IMAGE)
    assert {"0.b", "2"} <= graph.blocks.keys() and {"0.a", "0.c"} <= graph.groups.keys()
    assert graph.view(frozenset()).macs(graph.full) > graph.view(frozenset(["0.b"])).macs(graph.full)


class Wipes(Plain):
    """A tensor is written to by a method whose name is not seen to write."""

    def forward(self, x):
        x = self.a(x).relu().clone()
        x.__setitem__((slice(None), slice(0, 3)), 0.0)
        return self.fc(self.c(x + self.n(self.b(x)).relu()).relu().mean((2, 3)))


class Keeps(nn.Module):
    """A layer that leaves a number for another, or reads it."""

    def __init__(self, held, writes):
        super().__init__()
        self.fc, self.held, self.writes = nn.Linear(5, 5), held, writes

    def forward(self, x):
        if self.writes:
            self.held["mean"] = float(x.detach().mean())
        return self.fc(x) + self.held["mean"] if x.sum() < 1e9 else x


@pytest.mark.filterwarnings("error")
def test_a_method_that_writes_to_a_part_is_seen_to_write():
    graph = checked(made(Wipes), IMAGE)
    assert graph.groups.keys() == {"c"}  # what is added to the part is tied to it


@pytest.mark.filterwarnings("ignore:.*it looks at the numbers")
def test_a_part_whose_copy_computes_something_else_is_one_layer():
    held = {"mean": 1.0}
    teacher = nn.Sequential(made(Plain), nn.ReLU(), nn.Sequential(Keeps(held, True), nn.ReLU(), Keeps(held, False))).eval()
    with pytest.warns(NotTraced, match=r"^2 \(\w+\) .*rebuilt without any change, it gives other outputs, by up to 0\.\d+; one"):
        graph = checked(teacher, IMAGE)
    assert "0.b" in graph.blocks and "2" in graph.layers


class Counts(Plain):
    """Forward writes to a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Noisy(Plain):
    def forward(self, x):
        return super().forward(x) + torch.rand(x.shape[0], 5)


@pytest.mark.parametrize("network", [Counts, Noisy])
@pytest.mark.filterwarnings("error")
def test_the_comparison_with_the_teacher_changes_no_buffer_and_spares_random_networks(network):
    teacher = made(network)
    with torch.random.fork_rng():
        graph = trace(teacher, torch.zeros(1, *IMAGE))
    assert list(graph.blocks) == (["b"] if network is Counts else ["a", "b"]) and getattr(teacher, "calls", 0) == 0


def test_the_comparison_costs_a_run_of_each():
    ran = []

    class Counted(Plain):
        def forward(self, x):
            ran.append(type(x))
            return super().forward(x)

    model = made(Counted)
    graph = trace(model, torch.zeros(1, *IMAGE))
    student = build_student(model, graph, Plan())
    student.register_forward_hook(lambda *_: ran.append("student"))
    ran.clear()
    verify.check_rebuilt(model, student, (torch.zeros(2, *IMAGE),))
    assert ran == [torch.Tensor, "student"]


@pytest.mark.parametrize("index", [0, -1, slice(1, 3), (..., 1), (0, slice(None, None, 2)), (slice(1, -1), 2, slice(2))])
@pytest.mark.parametrize("value", [3, torch.tensor(4.0)])
def test_writing_to_a_part_is_as_in_place(index, value):
    x = torch.randn(3, 4, 5)
    new = written(x, index, value)
    x[index] = value
    assert torch.equal(new, x)
    assert torch.equal(written(x, x > 0, 1.0), torch.where(x > 0, 1.0, x))
    assert written(x, torch.tensor([0]), 1.0) is None and written(x, x > 0, x) is None


def test_errors_of_students_are_not_printed(capfd):
    graph = trace(made(Lengths), torch.zeros(1, *IMAGE))
    student = build_student(made(Lengths), graph, Plan())
    with pytest.raises(RuntimeError, match="channels"):
        student(torch.zeros(1, 4, 8, 8))
    copy.deepcopy(student)
    assert capfd.readouterr().err == ""


def test_tied_weights_stay_tied_and_are_counted_once(tmp_path):
    teacher = made(TiedConvs)
    graph = checked(teacher, IMAGE)
    width = graph.groups["a"].size // 2
    student = build_student(teacher, graph, Plan.of((), {"a": width}))
    assert student.h1.weight is student.h2.weight and student.h1.weight.shape == (width, width, 3, 3)
    assert student.h1.bias is not student.h2.bias and student.b1.running_mean is student.b2.running_mean
    save_student(student, Plan.of((), {"a": width}), tmp_path)
    loaded = rebuild_student(teacher, graph, tmp_path)
    assert loaded.h1.weight is loaded.h2.weight and torch.equal(loaded.h1.weight, student.h1.weight)
    one = build_student(teacher, graph, Plan.of(["h1"]))
    assert sum(p.numel() for p in teacher.parameters()) - sum(p.numel() for p in one.parameters()) == 16 + 2 * 16
    inputs = torch.randn(8, *IMAGE, generator=torch.Generator().manual_seed(0))
    before = student.h1.weight.clone()
    Refit(build_student(teacher, graph, Plan()), graph, inputs)(student, Plan.of((), {"a": width}))
    assert torch.equal(student.h1.weight, before) and student.h1.weight is student.h2.weight


def test_weights_that_are_read_as_numbers_keep_their_layer_as_it_is():
    teacher = made(TiedAutoencoder)
    graph = checked(teacher, IMAGE)
    assert graph.left_alone["enc"] and graph.left_alone["b"] == "it shares enc.weight"
    student = build_student(teacher, graph, Plan.of((), {"a": 7}))
    assert student.a.bias.shape == (7,) and student.a.out_channels == 7


def test_weights_that_are_shared_with_a_part_that_cannot_be_followed_stay():
    with pytest.warns(NotTraced, match=r"ours \(Ours\) cannot be traced \(test_capture.py:\d+"):
        graph = checked(made(TiedInside), IMAGE)
    assert list(graph.blocks) == ["b", "ours", "head"] and not graph.groups
