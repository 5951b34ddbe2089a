"""Files that people share run no code: run folders, results and policies, at the command line and from Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import refused, works

from compress_env.api import finish, learn_policy, objective_of
from compress_env.errors import UserError
from compress_env.own_code import check_trust, load_module
from compress_env.registry import load_attribute
from compress_env.search.store import RunFolder

OWN = """
import pathlib
pathlib.Path({marker!r}).touch()
from compress_env.resources.base import Resource
from compress_env.surgery.ranking import magnitude as order
from compress_env.tasks.classification import Classification as Task
from compress_env.tasks.classification.losses import hinton as loss
from compress_env.teachers import load_teacher

def reward(evaluation, limits): return evaluation.metric
def teacher(): return load_teacher("resnet8-digits").module
def data(): return "digits"
class Cost(Resource):
    unit = "u"
    def predict(self, view, widths): return view.parameters(widths)
    def count(self, student, example): return float(sum(p.numel() for p in student.parameters()))
"""
COMMANDS = {
    "validate": ["validate", "--count", "1", "--out"], "finetune": ["finetune", "--epochs", "1", "--out"],
    "export": ["export", "--out"], "learn": ["policy", "learn", "--episodes", "2", "--out", "policy.onnx"],
}  # fmt: skip
NAMED = {
    "teacher": ("--teacher", "{own}:teacher"), "data": ("--data", "{own}:data"), "reward": ("--reward", "{own}:reward"),
    "task": ("--task", "{own}:Task"), "ranking": ("--ranking", "{own}:order"), "loss": ("--evaluator", "loss={own}:loss"),
    "budget": ("--budget", "{own}:Cost=0.5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with two trials that names no code."""
    out = tmp_path_factory.mktemp("trust") / "run"
    works("search", "--agent", "random", "--evaluations", 2, "--finetune-epochs", 0, "--out", out)
    (out / "plan.json").write_text("{}")
    return out


@pytest.fixture
def own(tmp_path):
    """A file with code, which leaves a marker when it is run."""
    file = tmp_path / "own.py"
    file.write_text(OWN.format(marker=str(tmp_path / "was run")))
    return file


def forged(run, tmp_path, own, name):
    """A copy of the run that names code in one setting, as somebody could send it."""
    copy = shutil.copytree(run, tmp_path / "run")
    recorded = json.loads((copy / "run.json").read_text())
    environment, place = recorded["environment"], NAMED[name][1].format(own=own).removeprefix("loss=").removesuffix("=0.5")
    if name == "budget":
        environment["budget"] = {place: 0.5}
    elif name == "loss":
        environment["evaluator"]["loss"] = place
    else:
        (environment if name == "reward" else environment["problem"])[name] = place
    (copy / "run.json").write_text(json.dumps(recorded))
    return copy, place


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_a_run_folder_names_is_not_run(run, tmp_path, own, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    copy, place = forged(run, tmp_path, own, name)
    line = refused(*COMMANDS[command], copy)
    assert f"names code to be run ({name}: {place})" in line and "--trust" in line
    assert not (tmp_path / "was run").exists()


def test_modules_count_as_code_too():
    with pytest.raises(UserError, match=r"names code to be run \(reward: os:system\)"):
        check_trust({"reward": "os:system"}, False, "run.json")
    check_trust({"reward": "os:system"}, ["os:system"], "run.json")
    check_trust({"data": "imagefolder:/a", "weights": "C:/w.pt", "device": "cuda:0", "protect": ["a:b"]}, False, "run.json")
    with pytest.raises(UserError, match="teacher: imagefolder:run"):
        check_trust({"teacher": "imagefolder:run"}, False, "run.json")


@pytest.mark.parametrize("name", ["teacher", "data", "reward", "task", "budget"])
def test_code_is_run_that_the_command_names_again(tmp_path, own, name):
    option, value = NAMED[name]
    given = (option, value.format(own=own))
    data = ("--data", "digits") if name == "teacher" else ()
    quick = ("--agent", "uniform", "--evaluations", 1, "--finetune-epochs", 0)
    works("search", *given, *data, *quick, "--out", tmp_path / "a")
    assert "names code" in refused("validate", "--out", tmp_path / "a")
    assert "1 of 1 plans reproduce" in works("validate", "--out", tmp_path / "a", *given)
    if name == "reward":
        assert "1 of 1 plans reproduce" in works("validate", "--out", tmp_path / "a", "--trust")
        assert "was not made with 'n2n'" in refused("validate", "--out", tmp_path / "a", *given, "--reward", "n2n")


def test_python_asks_for_trust_as_well(run, tmp_path, own):
    folder = RunFolder(forged(run, tmp_path, own, "reward")[0])
    for use in (lambda: objective_of(folder, False), lambda: finish(folder, 1, progress=False),
                lambda: learn_policy([folder.path], tmp_path / "p.onnx", progress=False)):  # fmt: skip
        with pytest.raises(UserError, match="from Python trust=True"):
            use()
    assert not (tmp_path / "was run").exists()
    assert objective_of(folder, False, trust=True).spec.reward == f"{own}:reward"
    assert objective_of(folder, False, trust=[f"{own}:reward"]).hard


def test_a_report_of_results_runs_no_code(tmp_path, own):
    row = {"scenario": f"{own}:reward", "agent": f"{own}:reward", "seed": 0, "evaluations": 1, "best": [0.5], "metric": [0.9],
           "seconds": [1.0], "mean_last": 0.5, "final": None, "front": [[0.5, 0.9]], "plan": ""}  # fmt: skip
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"scenario": "../../x"}) + "\n")
    printed = works("bench", "report", "--out", tmp_path / "b")
    assert "of a user's own" in printed and not (tmp_path / "was run").exists()
    written = [p for p in tmp_path.rglob("*") if p.suffix == ".png"]
    assert len(written) == 2 and all(p.parent == tmp_path / "b" for p in written)


# Where code that a command names is looked for


def test_the_current_folder_is_not_searched_unless_a_module_there_is_named(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise SystemExit('the current folder was searched')")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    script = "import sys; from compress_env.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-P", "-c", script, "inspect", "--teacher", "mine:make", "--input-shape", "1,8,8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_file_is_run_once_unless_it_changes_and_finds_modules_beside_it(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("value = 7")
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom neighbour_of_mine import value\n@dataclass\nclass Part: x: 'int' = value\n"
    )
    part = load_attribute(f"{file}:Part", "part")
    assert part().x == 7 and load_attribute(f"{tmp_path}/../{tmp_path.name}/mine.py:Part", "part") is part
    file.write_text("Part = 8")
    assert load_attribute(f"{file}:Part", "part") == 8
    assert sys.path[0] != str(tmp_path)


@pytest.mark.parametrize("source, told", [
    ("x = 1\nraise KeyError('no')", "line 2: KeyError: 'no'"),
    ("def f(:\n  pass", "line 1: SyntaxError"),
    ("import a_module_that_is_nowhere", "line 1: ModuleNotFoundError: No module named 'a_module_that_is_nowhere'"),
])  # fmt: skip
def test_a_file_that_fails_is_named_with_the_line(tmp_path, source, told):
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(UserError) as caught:
        load_module(str(file), "reward")
    assert f"{file}, {told}" in str(caught.value)
