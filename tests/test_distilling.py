"""`distil` and `compress-env distill`: any student learns from any teacher; an interruption costs nothing, bad input is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from test_cli import refused, works
from torch import nn
from torch.nn.functional import cross_entropy

from compress_env import distil
from compress_env.data import Data, load_data
from compress_env.distill.train import predict
from compress_env.errors import UserError
from compress_env.teachers import load_teacher

NETWORKS = """
import torch
from torch import nn
def make(outputs=10):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, outputs)
    )
def five(): return make(5)
def large(): return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))
def frozen(): return make().requires_grad_(False)
def needy(width): return make()
"""
FILES = {"distillation.json", "result.json", "student.safetensors", "student.onnx", "student.pt2"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file with networks of a user's own."""
    file = tmp_path_factory.mktemp("own") / "net.py"
    file.write_text(NETWORKS)
    return file


@pytest.fixture(scope="module")
def few() -> Data:
    return load_data("digits").head(256)


@pytest.fixture
def fast(monkeypatch):
    """Without exports, which take longer than the trainings here."""
    for place in ("distilling", "finishing"):
        monkeypatch.setattr(f"compress_env.{place}.export_all", lambda *_, **__: {})


def network(width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10))


def test_a_student_designed_by_hand_is_trained_measured_and_exported(own, tmp_path, monkeypatch):
    out = tmp_path / "d"
    command = ("distill", "--student", f"{own}:make", "--epochs", 4, "--lr", 0.05, "--temperature", 2, "--label-weight", 0.3)
    printed = works(*command, "--out", out)
    assert {p.name for p in out.iterdir()} == FILES
    result, settings = (json.loads((out / name).read_text()) for name in ("result.json", "distillation.json"))
    student, recipe = result["student"], result["recipe"]
    assert (student["params"], student["macs"]) == (8 * 9 + 8 + 16 + 128 * 10 + 10, 64 * 8 * 9 + 128 * 10)
    assert student["metric_test"] > 0.85 and result["teacher"]["metric_test"] == pytest.approx(0.994, abs=0.002)
    assert (recipe["loss"], recipe["temperature"], recipe["label_weight"], recipe["lr"]) == ("hinton", 2.0, 0.3, 0.05)
    assert (settings["student"], settings["epochs"], settings["seed"]) == (f"{own}:make", 4, 0)
    assert f"{student['metric_test']:.2%}" in printed and f"{result['teacher']['metric_validation']:.2%}" in printed
    data = load_data("digits")
    session = onnxruntime.InferenceSession(str(out / "student.onnx"))
    answers = session.run(None, {"input": data.prepare(data.test.inputs[:]).numpy()})[0].argmax(1)
    assert np.mean(answers == data.test.labels.numpy()) == pytest.approx(student["metric_test"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["input_shape"]) == [1, 8, 8]
    monkeypatch.setattr("compress_env.distilling.finetune", None)  # the same command only reads what is there
    assert works(*command, "--out", out) == printed
    assert "was begun with seed=0, not 1; choose another --out" in refused(*command, "--seed", 1, "--out", out)


def test_from_python_neither_module_changes_and_the_copy_is_what_was_measured(few, tmp_path, fast):
    teacher, student = load_teacher("resnet8-digits").module, network().train()
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in (teacher, student)]
    random = torch.get_rng_state()
    done = distil(teacher, student, few, epochs=3, lr=0.05, out=tmp_path, progress=False)
    assert torch.equal(random, torch.get_rng_state()) and student.training
    for module, state in zip((teacher, student), before):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    right = predict(done.student, few, few.test).argmax(1) == few.test.labels
    assert done.result.student.metric_test == pytest.approx(right.double().mean().item())
    saved = load_file(tmp_path / "student.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in done.student.state_dict().items())


def test_mimic_learns_the_logits_from_images_without_labels(few, tmp_path, fast):
    bare = replace(few, labelled=False, train=replace(few.train, labels=torch.zeros_like(few.train.labels)), _cache={})
    start = network()
    teacher = load_teacher("resnet8-digits").module
    done = distil(teacher, start, bare, loss="mimic", lr=0.005, epochs=6, out=tmp_path, progress=False)
    assert done.result.metric == "agreement" and done.result.teacher.metric_test == 1.0
    assert not {"temperature", "label_weight"} & set(done.result.recipe)
    target = predict(teacher, few, few.test)
    apart = [(predict(each.eval(), few, few.test) - target).square().sum(1).mean() for each in (start, done.student)]
    assert apart[1] < 0.8 * apart[0] and done.result.student.metric_test > 0.4


def test_an_interrupted_distillation_goes_on_to_the_same_student(few, tmp_path, fast):
    calls = {"until": 6, "made": 0}

    def loss(student, teacher, labels, temperature):
        calls["made"] += 1
        if calls["made"] > calls["until"]:
            raise KeyboardInterrupt
        return cross_entropy(student, labels)

    def run(name):
        return distil("resnet8-digits", network(), few, loss=loss, epochs=3, out=tmp_path / name, progress=False)

    with pytest.raises(KeyboardInterrupt):
        run("cut")
    assert (tmp_path / "cut" / "distillation.checkpoint").exists() and not (tmp_path / "cut" / "result.json").exists()
    calls.update(until=1000, made=0)
    again = run("cut")
    assert calls["made"] == 8  # two of three epochs of four batches
    assert not (tmp_path / "cut" / "distillation.checkpoint").exists()
    whole = run("whole")
    assert all(torch.equal(a, b) for a, b in zip(again.student.state_dict().values(), whole.student.state_dict().values()))
    assert again.result.finetune == whole.result.finetune


def test_temperature_label_weight_and_the_seed_of_the_order_are_those_that_were_given(few, tmp_path, fast):
    seen = []

    def loss(student, teacher, labels, temperature, label_weight=0.2):
        seen.append((temperature, label_weight, tuple(labels[:8].tolist())))
        return cross_entropy(student, labels)

    for seed in (0, 1):
        given = {"temperature": 3.0, "label_weight": 0.6, "loss": loss, "seed": seed, "batch_size": 128, "epochs": 1}
        done = distil("resnet8-digits", network(), few, out=tmp_path / str(seed), progress=False, **given)
        assert (done.result.recipe["temperature"], done.result.recipe["label_weight"]) == (3.0, 0.6)
    assert len(seen) == len(set(seen)) == 4 and {call[:2] for call in seen} == {(3.0, 0.6)}


def test_the_seed_decides_on_the_random_weights_of_a_factory(own, few, tmp_path, fast):
    def weights(seed, name):
        done = distil("resnet8-digits", f"{own}:make", few, seed=seed, lr=1e-9, epochs=1, out=tmp_path / name, progress=False)
        return done.student[0].weight

    first = weights(0, "a")
    torch.rand(3)
    assert torch.equal(first, weights(0, "b")) and not torch.equal(first, weights(1, "c"))


def test_a_runs_student_is_trained_further_and_code_that_the_run_names_is_not_run(tmp_path, few, fast):
    run = tmp_path / "run"
    works("search", "--agent", "uniform", "--evaluations", 1, "--finetune-epochs", 1, "--out", run)
    saved = load_file(run / "student.safetensors")
    done = distil("resnet8-digits", run, few, epochs=1, lr=1e-9, out=tmp_path / "d", progress=False)
    state = {name: value.shape for name, value in done.student.state_dict().items()}
    assert state == {name: value.shape for name, value in saved.items()}
    before = json.loads((run / "result.json").read_text())["student"]["metric_test"]
    assert done.result.student.metric_test == pytest.approx(before, abs=0.02)
    assert "is the folder of a search" in refused("distill", "--student", "resnet8-digits", "--out", run)
    forged = shutil.copytree(run, tmp_path / "forged")
    recorded = json.loads((forged / "run.json").read_text())
    recorded["environment"]["problem"]["task"] = f"{tmp_path}/evil.py:Task"
    (forged / "run.json").write_text(json.dumps(recorded))
    assert "names code to be run" in refused("distill", "--student", forged, "--epochs", 1, "--out", tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("options, told", [
    (["--student", "resnet9"], "no student 'resnet9': it is neither a run folder nor a shipped network"),
    (["--student", ""], "no student ''"),
    (["--student", "OWN:five"], "answers with (5,) and the teacher 'resnet8-digits' with (10,)"),
    (["--student", "OWN:large"], "the student 'OWN:large' does not take float32 inputs of shape (1, 8, 8)"),
    (["--student", "OWN:frozen"], "has no parameter that may be trained"),
    (["--student", "OWN:needy"], "student 'OWN:needy': the factory is called without arguments"),
    (["--student", "OWN:mak"], "did you mean 'make'?"),
    (["--student", "OWN:make", "--student-weights", "OWN"], "cannot read weights from"),
    (["--student", "OWN:make", "--loss", "mimic", "--temperature", "2"], "the loss 'mimic' has no temperature"),
    (["--student", "OWN:make", "--loss", "labels", "--label-weight", "0.5"], "the loss 'labels' has no label weight"),
    (["--student", "OWN:make", "--loss", "hintn"], "did you mean 'hinton'?"),
    (["--student", "OWN:make", "--reward", "a:b"], "the student was not made with 'a:b'"),
])  # fmt: skip
def test_what_cannot_be_distilled_is_refused_before_anything_is_written(own, tmp_path, options, told):
    out = tmp_path / "d"
    assert told.replace("OWN", str(own)) in refused("distill", *[o.replace("OWN", str(own)) for o in options], "--out", out)
    assert not out.exists()


def test_wrong_arguments_from_python_and_a_training_that_diverges_are_errors(few, tmp_path, fast):
    with pytest.raises(UserError, match="no argument 'lrr'; did you mean 'lr'"):
        distil("resnet8-digits", network(), lrr=1)
    with pytest.raises(UserError, match="no argument 'protect'"):
        distil("resnet8-digits", network(), protect=("a",))
    with pytest.raises(UserError, match="diverges in its first epoch .* lower lr than 1e\\+08"):
        distil("resnet8-digits", network(), few, lr=1e8, loss="mimic", out=tmp_path / "d", progress=False)
    assert distil("resnet8-digits", network(), few, lr=1e-3, epochs=1, out=tmp_path / "d", progress=False).finetuned.epochs == 1


def test_a_student_that_needs_the_plain_layout_is_trained_in_it(few, tmp_path, fast):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

        def forward(self, x):
            return self.head(self.conv(x).relu().view(len(x), -1))

    done = distil("resnet8-digits", Viewed(), few, epochs=1, out=tmp_path, progress=False)
    assert done.finetuned.epochs == 1
