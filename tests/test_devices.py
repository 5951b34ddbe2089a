"""CUDA against the CPU, where there is one; and what is chosen where there is none."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import compress_env
from compress_env import devices
from compress_env.api import objective_of
from compress_env.data import load_data
from compress_env.distill import train
from compress_env.distill.cuda_graphs import answering
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import fit
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.search.store import RunFolder
from compress_env.search.validate import differences
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery.layout import channels_last
from compress_env.surgery.plan import Plan
from compress_env.teachers.resnet import resnet20_cifar10

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def small() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 10),
        )  # fmt: skip


def trained(device: str, precision: str = "float32") -> torch.Tensor:
    """All weights and buffers after 30 steps."""
    model, data = small().to(device), load_data("digits")
    recipe = Recipe(steps=30, batch_size=64, precision=precision)
    fit(model, data, recipe, lambda z, y, *_: cross_entropy(z, y), torch.Generator().manual_seed(1))
    assert "forward" not in vars(model) and not model.training
    return torch.cat([v.flatten().float() for v in model.state_dict().values()]).cpu()


def test_a_very_small_teacher_stays_on_the_cpu_and_larger_ones_go_to_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Problem.build(ProblemSpec()).device.type == "cpu"
    graph = compress_env.trace(resnet20_cifar10().eval(), torch.zeros(2, 3, 32, 32))
    macs = graph.view(frozenset()).macs(graph.full)
    assert devices.fastest_for(macs).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.fastest_for(macs).type == "cpu"


def test_a_device_that_is_not_there_is_refused_before_any_work():
    with pytest.raises(UserError, match="the device 'gpu' cannot be used"):
        compress_env.compress(device="gpu", evaluations=1)


def test_answers_are_the_models_own():
    model, x = small().eval(), torch.randn(5, 1, 8, 8)
    assert torch.equal(answering(model, bfloat16=False)(x), model(x).detach())


@pytest.mark.parametrize(
    ("layer", "inside"),
    [
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8), torch.float32),
        (nn.Conv2d(8, 16, 5, 1, 2, groups=8, bias=False), torch.float32),
        (nn.Conv2d(8, 8, 3, 1, 1, groups=8), torch.bfloat16),
        (nn.Conv2d(8, 8, 3, 2, 1, groups=2), torch.bfloat16),
        (nn.Conv2d(8, 8, 5, 2, 2), torch.bfloat16),
    ],
)
def test_mixed_precision_on_a_cpu_leaves_depthwise_convolutions_with_slow_gradients_in_float32(layer, inside):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "convolution" in str(func):
                seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 8, 8, 8)
    with Watch(), devices.mixed_precision(torch.device("cpu"), True):
        y = layer(x)
    assert seen == [inside] and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    with devices.mixed_precision(torch.device("cpu"), False):
        assert layer(x).dtype == torch.float32


@cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_training_is_that_of_python_and_the_same_each_time(precision, monkeypatch):
    first, second = trained("cuda", precision), trained("cuda", precision)
    monkeypatch.setattr(train, "replayed_training", lambda *a: channels_last(nn.Identity()))
    assert torch.equal(first, second) and torch.equal(first, trained("cuda", precision))


@cuda
def test_cuda_trains_like_the_cpu():
    torch.testing.assert_close(trained("cuda"), trained("cpu"), rtol=0.02, atol=0.02)


@cuda
def test_a_recorded_teacher_answers_batches_of_every_size():
    model, x = small().eval().cuda(), torch.randn(70, 1, 8, 8, device="cuda")
    answer = answering(model, bfloat16=False)
    for batch in (x[:64], x[6:], x[64:]):
        torch.testing.assert_close(answer(batch).clone(), model(batch).detach())


@cuda
def test_recordings_that_are_garbage_do_not_spoil_the_next():
    x, before = torch.randn(64, 1, 8, 8, device="cuda"), gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(5):
            model = small().eval().cuda()
            answer = answering(model, bfloat16=False)
            torch.testing.assert_close(answer(x).clone(), model(x).detach())
            circle: list[object] = [answer]
            circle.append(circle)
            del answer, circle
    finally:
        gc.set_threshold(*before)


@cuda
def test_students_are_judged_and_finetuned_on_cuda_as_on_the_cpu():
    numbers = []
    for device in ("cuda", "cpu"):
        problem = Problem.build(ProblemSpec(device=device))
        plan = Plan.of((), {name: group.size // 2 for name, group in problem.graph.groups.items()})
        found = Evaluator(problem, EvaluatorSettings())(plan)
        numbers.append((found.metric, found.proxy_score))
        student, recipe = problem.student(plan), Recipe(epochs=2, batch_size=64, lr=0.02)
        done = finetune(student, problem.whole, problem.data, recipe, problem.task, progress=False)
        assert done.best_validation > 0.9 and next(student.parameters()).device.type == device
    np.testing.assert_allclose(*numbers, atol=0.02)


@cuda
def test_a_whole_run_on_cuda_ends_with_files_for_every_machine(tmp_path):
    made = compress_env.compress(
        device="cuda", agent="uniform", evaluations=1, finetune_epochs=1, out=tmp_path, progress=False
    )
    assert next(made.student.parameters()).device.type == "cpu" and (tmp_path / "student.onnx").exists()
    assert differences(objective_of(RunFolder(tmp_path)), made.trials, 1) == (1, [])
