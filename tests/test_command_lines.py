"""Command lines that nobody means end in one line and exit code 2: no traceback, and no result that is half there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli import refused, works

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with two trials."""
    out = tmp_path_factory.mktemp("runs") / "run"
    works("search", "--agent", "random", "--evaluations", 2, "--finetune-epochs", 0, "--out", out)
    return out


@pytest.mark.parametrize("arguments, told", [
    ("inspect --input-shape 99999,99999,99999", "is one input of 3,725,179 GiB"),
    ("search --agent ddpg --agent-option noise=[1]", "noise is two positive numbers"),
    ("search --agent td3 --agent-option noise=[0,0]", "noise is two positive numbers"),
    ("search --agent ddpg --agent-option buffer_size=99999999999999", "failed with buffer_size=99999999999999: MemoryError"),
    ("search --agent n2n --agent-option rollouts=x", "the agent 'n2n': rollouts has to be a whole number, got 'x'"),
    ("search --agent n2n --agent-option rollouts=0", "rollouts is a number of students, 1 or more; got 0"),
    ("search --agent model --agent-option mutations=1.5", "mutations has to be a whole number, got 1.5"),
    ("search --agent policy --agent-option file=x --agent-option noise=true", "noise has to be a number, got True"),
    ("search --agent sac --agent-option reward_scale=x", "reward_scale has to be a positive number, got 'x'"),
    ("search --mean 0.5,0.5,0.5 --std 1,1,1", "are of 1 channels, and mean and std are for 3"),
    ("search --device privateuseone", "the device 'privateuseone' cannot be used"),
    ("search --device meta", "the device 'meta' cannot be used"),
    ("search --seed -1", "-1 is not in the range"),
    ("search --seed 99999999999999999999", "is not in the range"),
    ("bench run --scenario planted --agent random", "/no"),
    ("bench policy --evaluations 0", "/no"),
])  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(tmp_path, arguments, told):
    (tmp_path / "file").write_text("")
    out = [] if arguments.startswith("inspect") else ["--out", tmp_path / ("file/no" if "bench" in arguments else "a")]
    assert told in refused(*arguments.split(), *out)
    assert not (tmp_path / "a" / "trials.jsonl").exists()


@pytest.mark.parametrize("command", ["report", "validate", "finetune", "export", "policy learn RUN", "bench run", "bench report"])
def test_an_empty_path_is_refused(run, command):
    assert "it is empty; give a path" in refused(*(run if word == "RUN" else word for word in command.split()), "--out", "")


def test_one_limit_is_enough_to_learn_a_policy_for(run, tmp_path):
    works("policy", "learn", run, "--episodes", 2, "--budget", "macs=0.5", "--out", tmp_path / "policy.onnx")
    assert (tmp_path / "policy.onnx").exists()


def test_a_policy_that_cannot_be_written_is_no_success(run, tmp_path, monkeypatch):
    monkeypatch.setattr("compress_env.agents.sb3.algorithm.save_policy", lambda *_: 1 / 0)
    line = refused("policy", "learn", run, "--episodes", 2, "--out", tmp_path / "policy.onnx")
    assert "this policy cannot be written as ONNX: division by zero" in line and not (tmp_path / "policy.onnx").exists()


@pytest.mark.parametrize("module, arguments, told", [
    ("fidelity", "--seed -1 --out OUT", "-1 is not in the range"),
    ("fidelity", "--plans 0.5:1 --out OUT", "needs three plans at least"),
    ("fidelity", "--truths benchmarks/latency/results.jsonl --out OUT", "holds no distilled plans"),
    ("fidelity", "--truths benchmarks/losses/resnet20-cifar10.jsonl --out OUT", "holds no distilled plans"),
    ("peers", "--show benchmarks/latency/results.jsonl --out OUT", "line 2 of benchmarks/latency/results.jsonl is damaged"),
    ("latency", "--device nope --out OUT", "the device 'nope' cannot be used"),
])  # fmt: skip
def test_benchmarks_refuse_alike(tmp_path, monkeypatch, module, arguments, told):
    monkeypatch.chdir(REPOSITORY)
    command = importlib.import_module(f"benchmarks.{module}.__main__").main
    result = CliRunner().invoke(command, arguments.replace("OUT", str(tmp_path / "a")).split())
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert told in result.output.splitlines()[-1]
