"""Command lines and damaged files: no traceback, exit code 2 or 0, and no result that is half written."""

from __future__ import annotations

import json
import re
import shutil

import fuzz
import numpy as np
import pytest
from test_cli import call, works

from compress_env.allocation.sensitivities import Sensitivities, probes

pytestmark = [
    pytest.mark.usefixtures("one_problem"),
    pytest.mark.filterwarnings("default"),  # a warning is a line, and no error, at the command line
]
LINES, FILES, PARTS = 200, 40, 10
"""Of each kind, and how many tests they are spread over."""
NAMES = ("run.json", "problem.json", "parts.json", "sensitivities.json", "trials.jsonl", "search.json", "result.json", "plan.json")
NAMES += ("policy.onnx",)
READERS = (
    ["report", "--out", "RUN"], ["validate", "--count", "1", "--out", "RUN"], ["finetune", "--epochs", "1", "--out", "RUN"],
    ["search", "--agent", "random", "--evaluations", "3", "--finetune-epochs", "0", "--resume", "--out", "RUN"],
    ["export", "--out", "RUN"], ["bench", "report", "--results", "FILE", "--out", "RUN"],
)  # fmt: skip


def synthetic(problem, *_):
    """Sensitivities that nothing was measured for."""
    blocks, groups = {}, {}
    for plan in probes(problem):
        for name in plan.removed:
            blocks[name] = 0.01
        for name, width in plan.widths:
            groups.setdefault(name, []).append((width, 0.02))
    return Sensitivities(blocks, {name: tuple(sorted(pairs)) for name, pairs in groups.items()}, 1, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a policy."""
    out = tmp_path_factory.mktemp("fuzz") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress_env.finishing.export_all", lambda *_, **__: {})
        patch.setattr("compress_env.objective.measure", synthetic)
        patch.setattr("compress_env.agents.offline.BUDGETS", 4)
        works("search", "--agent", "random", "--evaluations", 2, "--finetune-epochs", 1, "--out", out)
        works("policy", "learn", out, "--episodes", 2, "--out", out / "policy.onnx")
    return out


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    """What takes long and is tested elsewhere is left out; everything that reads what a user gives is there."""

    def exported(_student, _example, path, _metadata):
        path.write_bytes(b"exported")
        return 0.0

    monkeypatch.setattr("compress_env.objective.measure", synthetic)
    monkeypatch.setattr("compress_env.searching.say", lambda *_: None)
    monkeypatch.setattr("compress_env.searching.estimate", lambda *_: Sensitivities)
    monkeypatch.setattr(Sensitivities, "text", lambda: "", raising=False)
    monkeypatch.setattr("compress_env.distill.finetune.fit", lambda *_, **__: None)
    monkeypatch.setattr("compress_env.finishing.export_all", lambda *_, **__: {})
    monkeypatch.setattr("compress_env.export.FORMATS", {"student.onnx": exported, "student.pt2": exported})
    monkeypatch.chdir(tmp_path)


def check(line, folder):
    """Run a command line, and look at how it ends and what it leaves."""
    result = call(*line)
    ended = f"{line}: exit code {result.exit_code}, {result.exception!r}\n{result.output[-2000:]}"
    assert result.exception is None or isinstance(result.exception, SystemExit), ended
    assert result.exit_code in (0, 2) or (result.exit_code == 1 and line[0] == "validate"), ended
    assert "Traceback" not in result.output, ended
    if result.exit_code == 2:
        last = result.output.rstrip().splitlines()[-1]
        assert re.match("Error: .", last), ended
    left = [p for p in folder.rglob("*") if ".part" in p.name or p.name == ".lock"]
    assert not left, f"{ended}\nleft: {left}"
    return result


@pytest.mark.parametrize("part", range(PARTS))
def test_command_lines(run, tmp_path, part):
    for number in range(part, LINES, PARTS):
        line = fuzz.command_line(np.random.default_rng([0, number]), run, tmp_path / f"out{number}")
        result = check(line, tmp_path)
        out = tmp_path / f"out{number}"
        if result.exit_code == 0 and line[0] == "search" and "--dry-run" not in line:
            assert json.loads((out / "run.json").read_text())["format"] and len((out / "trials.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files(run, tmp_path, part):
    for number in range(part, FILES, PARTS):
        rng = np.random.default_rng([1, number])
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        file = copy / NAMES[rng.integers(len(NAMES))]
        file.write_bytes(fuzz.damaged(rng, file.read_bytes()))
        reader = READERS[rng.integers(len(READERS))]
        if file.name == "policy.onnx":
            reader = ["policy", "apply", "FILE", "--proposals", "1", "--out", str(tmp_path / f"applied{number}")]
        check([{"RUN": str(copy), "FILE": str(file)}.get(word, word) for word in reader], copy)
        shutil.rmtree(copy)
