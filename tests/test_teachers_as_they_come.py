"""Teachers as people bring them: each runs, or is refused with the same words by everything that needs a teacher."""

from __future__ import annotations

import sys
from unittest import mock

import gymnasium as gym
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset

import compress_env
from compress_env.cli.main import main
from compress_env.distill.recipes import Recipe
from compress_env.errors import UserError
from compress_env.problem import Measured, Problem
from compress_env.report.inspect import inspect
from compress_env.spec import ProblemSpec

SHAPE = (3, 8, 8)


def pair(n: int = 60, shape: tuple[int, ...] = SHAPE, classes: int = 3):
    generator = torch.Generator().manual_seed(1)
    return tuple(TensorDataset(torch.randn(k, *shape, generator=generator), torch.arange(k) % classes) for k in (n, n // 3))


class Net(nn.Module):
    """A small residual network; `answer` says what becomes of its logits."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, classes)

    def forward(self, x):
        x = self.a(x).relu()
        x = x + self.b(x).relu()
        return self.answer(self.head(x.mean((2, 3))), x)

    def answer(self, logits, x):
        return logits


class Dict(Net):
    def answer(self, logits, x):
        return {"out": logits, "aux": logits}


class Tuple(Net):
    def answer(self, logits, x):
        return logits, x


class Sized(Net):
    """As timm's ViTs, it asserts the size of its images."""

    def forward(self, x):
        assert x.shape[2] == 16, f"Input height ({x.shape[2]}) doesn't match model (16)."
        return super().forward(x)


class Raises(Net):
    def answer(self, logits, x):
        raise KeyError("scale")


class Fixed(Net):
    """It takes two examples at once, and no other number."""

    def answer(self, logits, x):
        return logits.view(2, -1)


class OneRow(Net):
    def answer(self, logits, x):
        return logits.mean(0, keepdim=True)


REFUSED = {
    Dict: r"answers float32 inputs of shape \(3, 8, 8\) on cpu with a dict of 'out', 'aux'; it has to answer with one tensor",
    Tuple: r"with a tuple of 2 parts; it has to answer with one tensor, a row an example: wrap it",
    Sized: r"does not take float32 inputs .*: AssertionError: Input height \(8\) doesn't match model \(16\)\. \(test_teachers_as",
    Raises: r"does not take float32 inputs .*: KeyError: 'scale' \(test_teachers_as_they_come\.py:\d+\); give other data, or",
    Fixed: r"does not take float32 inputs .*: RuntimeError: shape '\[2, -1\]' is invalid",
    OneRow: r"answers 2 float32 inputs .* with a tensor of shape \(1, 3\); it has to have a row an example",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_teacher_that_does_not_run_here_is_refused_alike_everywhere(kind):
    teacher, told = kind().eval(), REFUSED[kind]
    with pytest.raises(UserError, match=told) as first:
        inspect(teacher, SHAPE)
    with pytest.raises(UserError, match=told) as second:
        compress_env.compress(teacher, pair(), evaluations=1, progress=False)
    with pytest.raises(UserError, match=told):
        gym.make("LayerRemoval-v0", teacher=teacher, data=pair())
    assert str(first.value) == str(second.value) and f"teacher {kind.__name__!r}" in str(first.value)


def test_values_that_are_not_finite_are_refused_on_data_and_allowed_on_zeros():
    class Unit(Net):
        def forward(self, x):
            return super().forward(x / x.flatten(1).norm(dim=1)[:, None, None, None])

    assert inspect(Unit().eval(), SHAPE).layers == 3  # zeros have no direction
    nothing = tuple(TensorDataset(torch.zeros(60, *SHAPE), torch.arange(60) % 3) for _ in range(2))
    with pytest.raises(UserError, match="values that are NaN or infinite; look at its weights, and at how inputs are normalised"):
        Problem.build(ProblemSpec(Unit().eval(), data=nothing))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b, self.head = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.b(self.a(x).relu())
        return self.head(x.mean(1))


def test_numbers_of_words_are_inputs_with_data_without_it_and_when_a_run_is_gone_on_with():
    generator = torch.Generator().manual_seed(0)
    words = tuple(TensorDataset(torch.randint(20, (n, 6), generator=generator), torch.arange(n) % 3) for n in (60, 30))
    teacher = Words().eval()
    problem = Problem.build(ProblemSpec(teacher, data=words))
    assert inspect(teacher, (6,)).usage == inspect(teacher, data=words).usage == problem.cost_model.teacher
    again = Problem.build(ProblemSpec(teacher, data=words), measured=Measured.from_json(problem.measured.to_json()))
    assert again.example(2).dtype == torch.int64 and again.cost_model.teacher == problem.cost_model.teacher
    assert again.id == problem.id


def test_a_teacher_that_mixed_precision_breaks_is_computed_in_float32(monkeypatch):
    class Strict(Net):
        def answer(self, logits, x):  # both have to be of one type
            return torch.zeros_like(logits, dtype=torch.float32).lerp(logits, 1.0)

    monkeypatch.setattr("compress_env.devices.bfloat16_pays", lambda *_: True)
    assert Problem.build(ProblemSpec(Net().eval(), data=pair())).bfloat16
    problem = Problem.build(ProblemSpec(Strict().eval(), data=pair()))
    assert not problem.bfloat16
    assert problem.runnable(Recipe(precision="bfloat16")).precision == "float32"
    env = gym.make("LayerRemoval-v0", teacher=Strict().eval(), data=pair(), budget={"macs": 0.9})
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = env.step(env.action_space.sample() * 0)
    assert not info["failed"]


def command(*arguments) -> str:
    """The last line of a command that is refused."""
    arguments = [str(a) for a in arguments]
    with mock.patch.object(sys, "argv", ["compress-env", *arguments]):
        result = CliRunner().invoke(main, arguments, prog_name="compress-env")
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output[-500:]
    return result.output.splitlines()[-1]


def test_an_input_that_no_memory_holds_is_refused():
    assert "takes 11,175,536 GiB for 3 inputs" in command("inspect", "--input-shape", "99999,99999,99999")
