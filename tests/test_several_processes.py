"""A full distillation that processes share, as torchrun starts them, and batches that are computed in parts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from compress_env.api import finish, run_search
from compress_env.cli.main import main
from compress_env.errors import UserError
from compress_env.files import read_json
from compress_env.spec import EnvironmentSpec, SearchSpec

TEACHER = """
import torch
from torch import nn

def make():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )
"""
LEARNING = {"batch_size": 64, "lr": 0.1, "loss": "labels"}
"""What makes weights differ much from those at the beginning: the teacher knows nothing."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run of a network in which no layer looks at a whole batch, so that it does not matter how batches are shared."""
    place = tmp_path_factory.mktemp("several")
    (place / "net.py").write_text(TEACHER)
    spec = EnvironmentSpec.of_keywords(teacher=f"{place / 'net.py'}:make", data="digits", budget={"macs": 0.5})
    return run_search(spec, SearchSpec("uniform", {}, 1, 0), place / "run", progress=False)


@pytest.fixture(scope="module")
def alone(searched, tmp_path_factory):
    folder, objective = searched
    done = finish(folder, 2, objective=objective, progress=False, **LEARNING)
    return done.finetuned, load_file(folder.path / "student.safetensors")


def close(weights, others) -> bool:
    return all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)


def test_two_processes_learn_as_one_does(searched, alone):
    folder, _ = searched
    finetuned, weights = alone
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["compress_env", "finetune", "--out", str(folder.path), "--epochs", "2", "--accumulate", "2", "--trust"]
    command += [word for name, value in LEARNING.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300, env=one_thread)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("report: ") == 1  # of the first process alone
    shared = read_json(folder.path / "result.json")
    assert shared["finetune"]["processes"] == 2 and shared["recipe"]["accumulate"] == 2
    assert max(finetuned.history) > finetuned.history[0]
    assert [row["validation"] for row in shared["finetune"]["history"]] == pytest.approx(finetuned.history, abs=0.01)
    assert close(weights, load_file(folder.path / "student.safetensors"))


def test_a_batch_in_parts_teaches_the_same(searched, alone):
    folder, objective = searched
    done = finish(folder, 2, objective=objective, progress=False, **LEARNING, accumulate=4)
    assert done.result.recipe["accumulate"] == 4 and done.finetuned.processes == 1
    assert close(alone[1], load_file(folder.path / "student.safetensors"))
    with pytest.raises(UserError, match="batches of 64 examples cannot be shared by 1 process.* in 3 part.*multiple of 3"):
        finish(folder, 2, objective=objective, progress=False, **LEARNING, accumulate=3)


def test_launchers_start_nothing_else(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    found = CliRunner().invoke(main, ["search", "--budget", "macs=0.5"])
    assert found.exit_code == 2 and "`compress-env finetune` only" in found.output
