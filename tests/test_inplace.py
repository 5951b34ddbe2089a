"""Operations in place are written out of place: the same numbers, whatever is read again, and students that can be trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress_env.errors import UserError
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace


class Writes(nn.Module):
    """Looks at values, so that it is not traced, and writes to its input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.w(x.mul_(0.5))


class Net(nn.Module):
    """A head behind a body that is given as a function."""

    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.relu, self.drop, self.same, self.writes = nn.ReLU(True), nn.Dropout(inplace=True), nn.Identity(), Writes()
        self.body, self.fc = body, nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.body(self, x).mean((2, 3)))


def read_again(s, x):
    h = s.a(x)
    return s.b(F.silu(h, inplace=True)) + h


def result_unused(s, x):
    h = s.a(x)
    F.relu(h, inplace=True)
    return h + s.b(h)


def module_read_again(s, x):
    h = s.a(x)
    return s.b(s.relu(h)) + h


def other_name(s, x):
    h = s.a(x)
    identity = s.same(h)
    h += s.b(identity)
    return s.c(h) + identity


def through_dropout(s, x):
    h = s.a(x)
    y = s.drop(h)
    y *= 2
    return s.b(h)


def methods(s, x):
    h = s.a(x)
    y = s.b(h)
    y.mul_(2).add_(h)
    h.clamp_(min=0)
    return y + h


def view_before(s, x):
    h = s.a(x)
    v = h.flatten(2)
    torch.relu_(h)
    return s.b(h) + v.view_as(h)


def through_view(s, x):
    h = s.a(x)
    h.view(h.shape[0], 8, -1).relu_()
    return s.b(h)


def through_permuted(s, x):
    h = s.a(x)
    v = h.permute(0, 2, 3, 1)
    v += 1
    return s.b(h)


def halves(s, x):
    h = s.a(x)
    a, b = h.chunk(2, 1)
    a.mul_(b)
    return s.b(torch.cat([a, b], 1))


def a_half_of_what_is_read(s, x):
    h = s.a(x)
    h.chunk(2, 1)[1].sigmoid_()
    h[:, :4].relu_()
    return s.b(h)


def wider_type(s, x):
    h = s.a(x)
    h *= torch.ones(8, 1, 1, dtype=torch.float64, device=x.device)
    return s.b(h)


def the_input(s, x):
    x -= 0.5
    return s.b(s.a(x.div_(2))) + s.a(x)


def into_out(s, x):
    h = s.a(x)
    y = s.b(h)
    torch.add(h, y, out=y)
    return y


def positional(s, x):
    h = s.a(x)
    return F.elu(s.b(F.elu(h, 0.5, True)), 1.0, True) + h


def without_twin(s, x):
    h = s.a(x)
    y = s.b(h)
    h.copy_(y).fill_(0.1)
    return h + y


def untraced(s, x):
    h = s.a(x)
    return s.writes(h) + h


def shape_alone(s, x):
    h = s.a(x)
    v = h.flatten(2)
    h.unsqueeze_(1).squeeze_(1)
    h.relu_()
    return s.b(h) + v.view_as(h)


BODIES = [
    read_again, result_unused, module_read_again, other_name, through_dropout, methods, view_before, through_view, through_permuted,
    halves, a_half_of_what_is_read, wider_type, the_input, into_out, positional, without_twin, untraced, shape_alone,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::compress_env.surgery.tracer.NotTraced")
def test_a_student_computes_what_its_teacher_does_in_place_and_can_be_trained(body):
    torch.manual_seed(0)
    teacher, x = Net(body).eval(), torch.randn(2, 3, 6, 6)
    graph, given = trace(teacher, x), x.clone()
    with torch.no_grad():
        assert torch.equal(build_student(teacher, graph, Plan())(given), teacher(x.clone()))
    assert torch.equal(given, x)  # no input is written to
    for removed, widths in ((frozenset(), graph.floor), (frozenset(graph.blocks), graph.full)):
        student = build_student(teacher, graph, graph.canonical(removed, widths)).train()
        student(given).sum().backward()
        assert torch.equal(given, x)
    assert teacher.relu.inplace


def test_random_numbers_that_are_made_in_place_are_no_obstacle():
    def body(s, x):
        h = s.a(x)
        return s.b(F.relu(h, inplace=True)) + 0.1 * torch.empty_like(h).normal_()

    teacher, x = Net(body).eval(), torch.randn(2, 3, 6, 6)
    graph = trace(teacher, x)
    assert build_student(teacher, graph, graph.canonical(frozenset(graph.blocks), graph.floor))(x).shape == (2, 3)


class Block(nn.Module):
    """As many people write it."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c2, self.b2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        out = F.relu(self.b1(self.c1(x)), inplace=True)
        out = self.b2(self.c2(out))
        out += x
        return F.relu(out, inplace=True)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.fc = nn.Conv2d(3, 6, 3, padding=1), Block(), Block(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.one(F.silu(self.stem(x), inplace=True))
        return self.fc(self.two(x).mean((2, 3)))


def test_without_a_block_it_is_the_network_that_one_would_write_out_of_place():
    torch.manual_seed(0)
    teacher, x = Residual(), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        teacher.train()(x)
    teacher.eval()
    graph = trace(teacher, x)
    assert list(graph.blocks) == ["one", "two"]

    def block(m, x):
        return F.relu(m.b2(m.c2(F.relu(m.b1(m.c1(x))))) + x)

    with torch.no_grad():
        stem = F.silu(teacher.stem(x))
        for removed, expected in (
            ({"one"}, block(teacher.two, F.relu(stem))),
            ({"two"}, F.relu(block(teacher.one, stem))),
            ({"one", "two"}, F.relu(F.relu(stem))),
        ):
            student = build_student(teacher, graph, Plan.of(removed))
            assert torch.equal(student(x), teacher.fc(expected.mean((2, 3))))


def test_what_cannot_be_written_out_of_place_is_refused_by_name():
    def body(s, x):
        h = s.a(x)
        h[:, 1:3, 1:3].relu_()
        return s.b(h)

    with pytest.raises(UserError, match="relu writes to a part of a tensor that is read again"):
        trace(Net(body).eval(), torch.randn(2, 3, 6, 6))
