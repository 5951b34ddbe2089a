"""Pruners of torch-pruning beside our students: the same MACs, the same fine-tuning, failures named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.peers import compare as peers
from benchmarks.peers import pruners
from benchmarks.peers.__main__ import main as command_line
from benchmarks.peers.table import table
from compress_env.bench.statistics import mean_interval
from compress_env.cli.main import main
from compress_env.data import load_data
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import finetuning_recipe
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.resources import RESOURCES
from compress_env.spec import EvaluatorSettings, ProblemSpec

MACS = RESOURCES.get("macs")


@pytest.fixture(scope="module")
def problem():
    return Problem.build(ProblemSpec())


class Rigid(nn.Module):
    """A network whose reshape names its number of channels, which torch-pruning leaves as it is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3)
        self.mix = nn.Conv1d(12, 12, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.mix(self.conv(x).relu().reshape(x.shape[0], 12, 36)).mean(2))


@pytest.mark.parametrize("name", ["magnitude-uniform", "taylor-global"])
def test_a_pruner_gives_the_largest_student_within_the_budget(problem, name):
    limit = 0.5 * problem.cost_model.teacher["macs"]
    before = {k: v.clone() for k, v in problem.teacher.module.state_dict().items()}
    model, ratio = pruners.shrunk(problem, pruners.PRUNERS[name], limit)
    used = MACS.count(model, problem.data.calibration(1))
    assert 0.8 * limit < used <= limit and model(problem.data.calibration(3)).shape == (3, 10)
    slopes = pruners.gradients(problem) if pruners.PRUNERS[name].gradients else None
    wider = pruners.pruned(problem, pruners.PRUNERS[name], ratio - 1e-5, slopes)
    assert used <= MACS.count(wider, problem.data.calibration(1))
    assert MACS.count(pruners.pruned(problem, pruners.PRUNERS[name], ratio - 0.07, slopes), problem.data.calibration(1)) > limit
    assert all(torch.equal(v, problem.teacher.module.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in [*problem.teacher.module.parameters(), *model.parameters()])


def test_the_pruners_rank_by_what_they_are_named_after(problem):
    norm = problem.teacher.module.stages[0][0].bn1.weight
    kept = pruners.pruned(problem, pruners.PRUNERS["bn-scale-uniform"], 0.5).stages[0][0].bn1.weight
    assert torch.equal(kept.abs().sort().values, norm.abs().sort().values[8:])
    slopes = {name: torch.zeros_like(g) for name, g in pruners.gradients(problem).items()}
    slopes["stages.0.0.conv1.weight"][3:7] = 1.0  # so that only these channels matter
    kept = pruners.pruned(problem, pruners.PRUNERS["taylor-uniform"], 0.75, slopes).stages[0][0].bn1.weight
    assert torch.equal(kept, norm[3:7])


def test_the_outputs_of_the_classifier_are_found(problem):
    assert pruners.classifier(problem) == ["fc"]


def test_students_are_trained_alike_once_and_what_fails_says_why(problem, tmp_path):
    limit = 0.5 * problem.cost_model.teacher["macs"]
    plan = peers.uniform_plan(problem, limit)

    def explode():
        raise ZeroDivisionError("a | b\nmore")

    broken = peers.Contestant(peers.PREFIX + "broken", explode)
    these = [peers.of_plan(problem, "uniform", plan), peers.of_library(problem, "magnitude-global", limit), broken]
    settings, rows = peers.compare(problem, these, limit, 1, 2, tmp_path, progress=False)
    assert [(r.student.removeprefix(peers.PREFIX), r.seed) for r in rows] == [
        ("uniform", 0), ("uniform", 1), ("magnitude-global", 0), ("magnitude-global", 1), ("broken", 0)]  # fmt: skip
    student = Evaluator(problem, EvaluatorSettings()).prepared(plan)
    recipe = finetuning_recipe(len(problem.data.train), 1, torch.device("cpu"))
    done = finetune(student, problem.whole, problem.data, recipe, problem.task, seed=1, progress=False)
    assert (rows[1].test, rows[1].validation_start) == (done.metric_test, done.history[0])
    assert all(0.4 < r.macs <= 0.5 and r.params < 1 and r.test > r.test_start for r in rows[2:4])
    path = tmp_path / "peers.jsonl"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:30])
    assert (
        peers.compare(problem, these, limit, 1, 2, tmp_path, progress=False) == (settings, rows)
        and path.read_text() == text
    )
    assert not list(tmp_path.glob("*.checkpoint"))
    printed = table(settings, rows)
    middle, half = mean_interval([r.test for r in rows[:2]])
    assert f"{middle:.2%} ± {100 * half:.2f}" in printed and "failed: ZeroDivisionError: a \\| b |" in printed
    gap = 100 * (middle - (rows[2].test + rows[3].test) / 2)
    assert f"less torch-pruning magnitude-global (the best peer on test images): {gap:+.2f} ± " in printed
    with pytest.raises(UserError, match="was made with epochs 1, not 2"):
        peers.compare(problem, these, limit, 2, 2, tmp_path, progress=False)


def test_a_network_that_torch_pruning_breaks_is_reported(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        problem = Problem.build(ProblemSpec(teacher=Rigid().eval(), data=load_data("digits")))
    limit = 0.5 * problem.cost_model.teacher["macs"]
    rows = peers.compare(
        problem, [peers.of_library(problem, "magnitude-uniform", limit)], limit, 1, 1, tmp_path, progress=False
    )[1]
    assert rows[0].failed.startswith("RuntimeError: ")


def test_the_command_takes_the_students_of_searches(tmp_path):
    def call(*arguments, command=command_line):
        return CliRunner().invoke(command, [*arguments])

    search = ("search", "--agent", "uniform", "--evaluations", "1", "--finetune-epochs", "0", "--out", str(tmp_path / "a"))
    assert call(*search, "--budget", "macs=0.3", command=main).exit_code == 0
    command = ("--finetune-epochs", "1", "--seeds", "1", "--method", "magnitude-uniform",
               "--run", str(tmp_path / "a"), "--out", str(tmp_path / "p"))  # fmt: skip
    done = call(*command, "--budget", "macs=0.3")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "p" / "peers.md").read_text()
    assert (
        text.count("| uniform 0 (") == 1
        and "| uniform | 1 |" in text
        and "| torch-pruning magnitude-uniform | 1 |" in text
    )
    rows = [json.loads(line) for line in (tmp_path / "p" / "peers.jsonl").read_text().splitlines()[1:]]
    assert all(0.2 < row["macs"] <= 0.3 for row in rows)
    assert {**rows[0], "student": ""} == {**rows[1], "student": ""}  # the same plan, found and computed
    other = shutil.copytree(tmp_path / "a", tmp_path / "b")
    (other / "run.json").write_text((other / "run.json").read_text().replace('"resnet8-digits"', '"net.py:make"'))
    for arguments, told in (
        (("--budget", "macs=0.2"), "more than 152,704; search with --budget macs=152704"),
        (("--budget", "macs=0.3", "--lr", "0.5"), "was made with recipe"),
        (("--budget", "latency=0.5"), "compared at equal MACs"),
        (("--run", str(other)), "is a run with teacher 'net.py:make', not 'resnet8-digits'"),
        (("--method", "magnitude-globl"), "did you mean 'magnitude-global'"),
    ):
        failed = call(*command, *arguments)
        assert failed.exit_code == 2 and told in failed.output, failed.output


def test_a_file_of_results_is_shown_without_training(tmp_path):
    file = Path(__file__).parent.parent / "benchmarks/peers/resnet20-50.jsonl"
    shown = CliRunner().invoke(command_line, ["--show", str(file)])
    assert shown.exit_code == 0 and shown.output.count("\n| ") == 8 and "the best peer on test images" in shown.output
    missing = CliRunner().invoke(command_line, ["--show", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2 and "there are no results in" in missing.output
