"""A teacher stays as it came, whatever its forward does; its students learn, and with dropout always the same."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

import compress_env  # noqa: F401 - registers the environments
from compress_env.errors import UserError


class Counting(nn.Module):
    """A small network with dropout that counts its passes in a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop, self.b = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Linear(8, 10)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.b(self.drop(self.norm(self.a(x)).relu().mean((2, 3))))


def of_counting(teacher, **settings):
    return gym.make("LayerRemoval-v0", teacher=teacher, data="digits", actions="absolute", observation="amc", **settings).unwrapped


def test_a_teacher_that_counts_its_passes_in_a_buffer_is_left_as_it_came():
    teacher = Counting().eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    env = of_counting(teacher)
    env.reset(seed=0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_layer_in_training_mode_is_named():
    teacher = Counting().eval()
    teacher.norm.train()
    with pytest.raises(UserError, match=r"its layer 'norm' is in training mode; call \.eval\(\) on the whole network"):
        of_counting(teacher)


def test_a_frozen_teachers_student_learns_and_dropout_has_its_own_random_state():
    env = of_counting(Counting().eval().requires_grad_(False), evaluator={"distill_steps": 3})
    problem, judge = env.objective.problem, env.objective.evaluator
    plan = problem.graph.canonical(frozenset(), problem.graph.allowed(problem.graph.full // 2))
    found = []
    for seed in (0, 7):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            found.append(judge(plan))
            assert torch.equal(torch.get_rng_state(), state)
        judge.forget(plan)
    assert found[0] == found[1] and not found[0].failed
    assert all(parameter.requires_grad for parameter in problem.student(plan).parameters())
    assert not any(parameter.requires_grad for parameter in problem.teacher.module.parameters())


class Random(nn.Module):
    """A network whose dropout goes on in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        return self.c(dropout(self.b(self.a(x).relu()).relu().mean((2, 3)), 0.3))


def test_a_teacher_that_is_random_in_evaluation_is_always_judged_alike_and_leaves_the_global_random_state():
    seen, torch_state = [], torch.get_rng_state()
    try:
        torch.manual_seed(0)
        teacher = Random().eval()
        for seed in (0, 7):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            env = gym.make("LayerRemoval-v0", teacher=teacher, data="digits", budget={"macs": 0.5, "memory": 0.9}).unwrapped
            env.reset(seed=0)
            done = False
            while not done:
                done, info = env.step(np.ones(2, np.float32))[2::2]
            seen.append({name: info[name] for name in ("metrics", "usage", "plan")})
            assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_rng_state(torch_state)
    assert seen[0] == seen[1]
