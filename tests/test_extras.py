"""Packages of extras: the main job goes without them, and what does not names the command that installs them, before any work."""

from __future__ import annotations

import sys

import pytest
from test_cli import call, refused

from compress_env.extras import EXTRAS, ONNX, Skipped
from compress_env.search.run import POLICY, search

COMMAND = 'install it with: pip install "compress-env[{}]"'


@pytest.fixture
def core_only(monkeypatch):
    """As where none of the extras is installed."""
    monkeypatch.setattr("compress_env.extras.find_spec", lambda name: None)
    for name in (*ONNX, "optuna", "cmaes"):  # no others, which libraries may look for once and for all when they are imported here
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("cma_es", "optuna_search", "policy", "tpe"):
        monkeypatch.delitem(sys.modules, f"compress_env.agents.{name}", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "extra, arguments",
    [
        ("optuna", "search --agent tpe"),
        ("optuna", "search --agent cma-es"),
        ("export", "search --budget latency=50% --runtime onnxruntime"),
        ("export", "policy apply policy.onnx"),
        ("export", "search --agent dyna-ddpg --agent-option start=policy.onnx"),
        ("ray", "search --cluster auto"),
        ("tensorboard", "search --tensorboard"),
        ("hf", "search --data hf:cifar10"),
        ("hub", "pull me/net"),
    ],
)
def test_a_missing_package_is_named_with_its_command_before_any_work(core_only, tmp_path, extra, arguments):
    line = refused(*arguments.split(), "--out", tmp_path / "run")
    assert line.endswith(COMMAND.format(extra))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("default::compress_env.extras.Skipped")
def test_a_search_without_onnx_says_how_to_have_the_file_after_all(core_only, tmp_path):
    done = call("search", "--agent", "random", "--evaluations", 2, "--finetune-epochs", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    told = [line for line in done.stderr.splitlines() if "onnx" in line]
    assert len(told) == 1 and COMMAND.format("export") in told[0]
    command = told[0].partition("then: compress-env ")[2].split()
    assert command == ["export", "--out", str(tmp_path)]
    assert {"student.safetensors", "student.pt2", "report.html"} <= {f.name for f in tmp_path.iterdir()}
    assert not (tmp_path / "student.onnx").exists()
    assert refused(*command).endswith(COMMAND.format("export"))


def test_a_learned_policy_that_cannot_be_written_is_said_first_and_written_later(core_only, make_planted, tmp_path):
    with pytest.warns(Skipped, match="policy.onnx, the learned policy, needs the package onnx.*--resume does so later"):
        search(make_planted(), "ppo", 8, 0, tmp_path, progress=False)
    assert not (tmp_path / POLICY).exists()
    core_only.undo()
    search(make_planted(), "ppo", 8, 0, tmp_path, progress=False)
    assert (tmp_path / POLICY).is_file()


def test_all_of_onnx_belongs_to_one_extra():
    assert {EXTRAS[name] for name in ONNX} == {"export"}
