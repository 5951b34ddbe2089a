"""The refit in closed form, evaluation, and training that resumes."""

from __future__ import annotations

import copy
import itertools
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_plan, vgg
from torch import nn
from torch.nn import functional as F

from compress_env.data import load_data
from compress_env.distill.checkpoint import Checkpoint
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import fit, predict
from compress_env.evaluator import Evaluator
from compress_env.files import remove
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit, solve
from compress_env.surgery.rules.registry import rule_of
from compress_env.surgery.trace import trace
from compress_env.tasks import load_task
from compress_env.teachers import load_teacher


@pytest.mark.parametrize("bias", [True, False])
def test_the_refit_recovers_a_planted_layer(bias):
    generator = torch.Generator().manual_seed(0)
    target, layer = nn.Linear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias)
    x = torch.randn(500, 6, generator=generator) + 3
    with torch.no_grad():
        y = target(x) if bias else target(x) + 7  # without a bias the mean is for a normalisation to remove
        solve(layer, x, y, ridge=1e-7)
    torch.testing.assert_close(layer.weight, target.weight, rtol=1e-3, atol=1e-3)
    if bias:
        torch.testing.assert_close(layer.bias, target.bias, rtol=1e-2, atol=1e-2)


def test_a_large_ridge_keeps_the_inherited_weights():
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.clone()
    with torch.no_grad():
        solve(layer, torch.randn(50, 6), torch.randn(50, 4), ridge=1e9)
    torch.testing.assert_close(layer.weight, before)


def test_patches_are_laid_out_like_the_weights():
    for settings in ({"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2}):
        conv = nn.Conv2d(3, 5, 3, bias=False, **settings)
        x = torch.randn(4, 3, 9, 9)
        with torch.no_grad():
            y = conv(x)
            rule = rule_of(conv)
            places = rule.positions(conv, "some.layer", y, 7)
            rows = rule.read(conv, "in", (x,), {}, places) @ rule.weight(conv, "in").flatten(1).T
            torch.testing.assert_close(rows, rule.written(conv, y, places))
            assert len(places) == 7 and len(rows) == 4 * 7


def _trained(seed: int = 0):
    """A chain trained for a moment on the digits, its data and graph."""
    data = load_data("digits")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip
    fit(
        teacher,
        data,
        Recipe(epochs=4, batch_size=64),
        lambda z, y, *_: F.cross_entropy(z, y),
        torch.Generator().manual_seed(seed),
    )
    return teacher, data, trace(teacher, data.calibration(2))


@pytest.fixture(scope="module")
def trained():
    return _trained()


def test_the_refit_brings_students_closer_to_the_teacher_also_where_a_chain_was_repaired(trained):
    teacher, data, graph = trained
    whole = build_student(teacher, graph, Plan())
    refit = Refit(whole, graph, data.calibration(400))
    target = predict(teacher, data, data.validation)
    assert "3" in graph.blocks and graph.blocks["3"].kind == "chain"
    for plan in (Plan.of(["3"]), Plan.of((), {"0": 6, "3": 8}), Plan.of(["6"], {"0": 9})):
        student = build_student(teacher, graph, plan)
        before = (predict(student, data, data.validation) - target).square().mean()
        refit(student, plan)
        after = (predict(student, data, data.validation) - target).square().mean()
        assert after < 0.5 * before


def test_the_refit_leaves_the_empty_plan_alone_and_normalises_exactly(trained):
    teacher, data, graph = trained
    inputs = data.calibration(200)
    whole = build_student(teacher, graph, Plan())
    refit = Refit(whole, graph, inputs)
    student = build_student(teacher, graph, Plan())
    refit(student, Plan())
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in student.state_dict().items())
    plan = Plan.of((), {"0": 7})
    student = build_student(teacher, graph, plan)
    refit(student, plan)
    with torch.no_grad():
        features = student.get_submodule("3")(
            student.get_submodule("2")(student.get_submodule("1")(student.get_submodule("0")(inputs)))
        )
    torch.testing.assert_close(student.get_submodule("4").running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        student.get_submodule("4").running_var, features.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5
    )


def test_evaluation_repeats_exactly_and_leaves_the_teacher_alone(trained):
    teacher, data, graph = trained
    problem = Problem.build(ProblemSpec(teacher=teacher, data=data))
    before = {k: v.clone() for k, v in problem.whole.state_dict().items()}
    settings = EvaluatorSettings(calibration_images=100, distill_steps=5)
    first, second = Evaluator(problem, settings), Evaluator(problem, settings)
    rng = np.random.default_rng(0)
    for _ in range(3):
        plan = random_plan(graph, rng)
        found = first(plan)
        assert found == second(plan) and 0 <= found.metric <= 1 and 0 < found.kl and not found.failed
    with pytest.raises(LookupError, match="did you mean 'hinton'"):
        Evaluator(problem, EvaluatorSettings(loss="hintom"))
    itself = first(Plan())
    assert itself.metric > 0.9 and itself.kl < 0.1
    assert all(torch.equal(v, problem.whole.state_dict()[k]) for k, v in before.items())


def test_training_that_is_resumed_ends_where_uninterrupted_training_does(tmp_path):
    data, recipe = load_data("digits"), Recipe(epochs=3, batch_size=64)

    def run(model, **kwargs):
        fit(model, data, recipe, lambda z, y, *_: F.cross_entropy(z, y), torch.Generator().manual_seed(1), **kwargs)
        return model.state_dict()

    start = load_teacher("resnet8-digits").module
    whole = run(copy.deepcopy(start))

    def stop(epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return ""

    def checkpoint():
        return Checkpoint(tmp_path / "state.checkpoint", start, recipe)

    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(start), on_epoch=stop, checkpoint=checkpoint())
    resumed = run(emptied(start), checkpoint=checkpoint())
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())


def emptied(module: nn.Module) -> nn.Module:
    """A copy with other weights, so that what is resumed has to come from the checkpoint."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    return other


def test_finetuning_reports_best_and_last_and_returns_the_best(trained, tmp_path):
    teacher, data, graph = trained
    whole = build_student(teacher, graph, Plan())
    plan = Plan.of((), {"0": 6, "3": 6})
    student = build_student(teacher, graph, plan)
    done = finetune(
        student,
        whole,
        data,
        Recipe(epochs=4, batch_size=64, lr=0.05),
        load_task("classification"),
        progress=False,
        checkpoint=tmp_path / "f.checkpoint",
    )
    assert done.epochs == 4 and len(done.history) == 5  # with the student as it came
    assert done.best_validation == max(done.history[1:]) == done.history[done.best_epoch]
    assert done.last_validation == done.history[-1]
    logits = predict(student, data, data.validation)
    assert (logits.argmax(1) == data.validation.labels).double().mean().item() == done.best_validation
    assert done.metric_test > 0.8 and [p.name for p in tmp_path.iterdir()] == ["f.checkpoint"]  # until its outcome is written


def trained_with(trained, lr, flattered):
    """What comes of a network's own copy; where it is flattered, the validation images have its own wrong answers as their labels."""
    teacher, data, graph = trained
    student, labels = build_student(teacher, graph, Plan()), data.validation.labels
    own = predict(student, data, data.validation).argmax(1)
    wrong = (own != labels).nonzero().flatten()[:flattered]
    labels = labels.clone()
    labels[wrong] = own[wrong]
    data = replace(data.head(256), validation=replace(data.validation, labels=labels), _cache={})
    whole, came = build_student(teacher, graph, Plan()), {k: v.clone() for k, v in student.state_dict().items()}
    done = finetune(student, whole, data, Recipe(epochs=2, batch_size=64, lr=lr), load_task("classification"), progress=False)
    return done, all(torch.equal(v, came[k]) for k, v in student.state_dict().items())


def test_an_untrained_student_that_looks_a_little_better_is_not_kept(trained):
    done, untouched = trained_with(trained, 0.1, flattered=4)
    assert done.history[0] > max(done.history[1:]) > done.history[0] - 0.02
    assert done.best_epoch == max((1, 2), key=lambda i: (done.history[i], i)) and not untouched
    assert done.best_validation == done.history[done.best_epoch] < done.history[0]


def test_an_untrained_student_that_is_surely_better_is_kept_and_said_so(trained):
    with pytest.warns(UserWarning, match="the fine-tuning makes the student worse: .* kept as it was before. Give a lower lr than 3"):
        done, untouched = trained_with(trained, 3.0, flattered=0)
    assert done.best_epoch == 0 and untouched and done.best_validation == done.history[0] > max(done.history[1:]) + 0.05


RECIPE = Recipe(epochs=3, batch_size=64, lr=0.05)


def finetuned(trained, checkpoint=None):
    """What comes of a small student with dropout, which draws random numbers too: numbers and weights."""
    teacher, data, graph = trained
    data = data.head(400)
    student = build_student(teacher, graph, Plan.of((), {"0": 6, "3": 6}))
    student = nn.Sequential(student, nn.Dropout(0.1)).eval()
    done = finetune(
        student, build_student(teacher, graph, Plan()), data, RECIPE, load_task("classification"), seed=2, progress=False,
        checkpoint=checkpoint,
    )  # fmt: skip
    return done, {k: v.clone() for k, v in student.state_dict().items()}


@pytest.mark.parametrize("when", range(12))
def test_a_finetuning_killed_at_any_write_ends_as_if_it_had_not_been(trained, tmp_path, monkeypatch, when):
    """Each epoch's checkpoint is written, synchronised and put in place; the process dies before, in, or after one of them."""
    expected, weights = finetuned(trained)
    step = itertools.count()

    def dying(function):
        def call(*args, **kwargs):
            if next(step) == when:
                if function is torch.save:
                    args[1].write(b"half")
                raise KeyboardInterrupt
            result = function(*args, **kwargs)
            if next(step) == when:
                raise KeyboardInterrupt
            return result

        return call

    path = tmp_path / "f.checkpoint"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch, "save", dying(torch.save))
        patched.setattr(Path, "replace", dying(Path.replace))
        finetuned(trained, path)
    assert {p.name for p in tmp_path.iterdir()} <= {path.name}
    done, found = finetuned(trained, path)
    assert done == expected and all(torch.equal(v, found[k]) for k, v in weights.items())
    assert list(tmp_path.iterdir()) == [path]
    assert finetuned(trained, path)[0] == expected  # the training is over: it is not done again


DIES = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_distill import _trained, finetuned
from compress_env import files
trained, left = _trained(), [{writes}]
trained[0].load_state_dict(torch.load({teacher!r}))
def dies(_):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
files.os.fsync = dies
finetuned(trained, Path({path!r}))
"""


def test_a_finetuning_whose_process_is_killed_goes_on(trained, tmp_path):
    expected, weights = finetuned(trained)
    path, teacher = tmp_path / "f.checkpoint", tmp_path / "teacher"
    torch.save(trained[0].state_dict(), teacher)
    code = DIES.format(tests=str(Path(__file__).parent), writes=2, teacher=str(teacher), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.exists() and len(list(tmp_path.glob(".f.*part*"))) == 1  # the second epoch's, not in place yet
    result, found = finetuned(trained, path)
    assert result == expected and all(torch.equal(v, found[k]) for k, v in weights.items())
    remove(path)
    assert list(tmp_path.iterdir()) == [teacher]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other", "flipped"])
def test_a_checkpoint_that_cannot_be_used_is_said_and_the_training_starts_over(trained, tmp_path, damage):
    expected, _ = finetuned(trained)
    path = tmp_path / "f.checkpoint"
    student = build_student(trained[0], trained[2], Plan())
    recipe = RECIPE if damage != "other" else replace(RECIPE, lr=0.01)
    Checkpoint(path, student, recipe).save({}, torch.Generator(), 1, 1)
    content = path.read_bytes()
    if damage != "other":
        path.write_bytes(
            {"empty": b"", "cut": content[:-200], "text": b"hello", "flipped": content[:90] + b"xx" + content[92:]}[
                damage
            ]
        )
    with pytest.warns(
        UserWarning, match="the checkpoint .*f.checkpoint cannot be used, it is .*; the training starts over"
    ):
        done, _ = finetuned(trained, path)
    assert done == expected


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        EvaluatorSettings(temperature=0)
    with pytest.raises(ValueError, match="precision"):
        Recipe(precision="float16")


def test_a_refitted_chain_without_normalisation_keeps_its_biases_useful():
    teacher = vgg(norm=False).eval()
    x = torch.randn(300, 3, 8, 8)
    graph = trace(teacher, x)
    whole = build_student(teacher, graph, Plan())
    plan = Plan.of((), {name: g.size - 2 for name, g in graph.groups.items()})
    student = build_student(teacher, graph, plan)
    with torch.no_grad():
        before = (student(x) - teacher(x)).square().mean()
        Refit(whole, graph, x)(student, plan)
        after = (student(x) - teacher(x)).square().mean()
    assert after < 0.3 * before
