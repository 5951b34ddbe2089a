"""Pruners of torch-pruning beside our students: the same MACs, the same fine-tuning, failures named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from compress_env.bench import peers
from compress_env.bench.statistics import mean_interval
from compress_env.cli.main import main
from compress_env.data import load_data
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import finetuning_recipe
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.resources.base import RESOURCES
from compress_env.surgery.build import build_student
from compress_env.tasks import load_task


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
def test_a_pruner_gives_the_largest_student_within_the_budget(digits_env, name):
    env, limit = digits_env, 0.5 * digits_env.cost_model.teacher["macs"]
    before = {k: v.clone() for k, v in env.teacher.module.state_dict().items()}
    model, ratio = peers.shrunk(env, peers.PRUNERS[name], limit)
    used = RESOURCES.get("macs").count(model, env.data.calibration(1))
    assert 0.8 * limit < used <= limit and model(env.data.calibration(3)).shape == (3, 10)
    slopes = peers.gradients(env) if peers.PRUNERS[name].gradients else None
    wider = peers.pruned(env, peers.PRUNERS[name], ratio - 1e-5, slopes)
    assert used <= RESOURCES.get("macs").count(wider, env.data.calibration(1))
    assert RESOURCES.get("macs").count(peers.pruned(env, peers.PRUNERS[name], ratio - 0.07, slopes), env.data.calibration(1)) > limit
    assert all(torch.equal(v, env.teacher.module.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in [*env.teacher.module.parameters(), *model.parameters()])


def test_the_pruners_rank_by_what_they_are_named_after(digits_env):
    norm = digits_env.teacher.module.stages[0][0].bn1.weight
    kept = peers.pruned(digits_env, peers.PRUNERS["bn-scale-uniform"], 0.5).stages[0][0].bn1.weight
    assert torch.equal(kept.abs().sort().values, norm.abs().sort().values[8:])
    slopes = {name: torch.zeros_like(g) for name, g in peers.gradients(digits_env).items()}
    slopes["stages.0.0.conv1.weight"][3:7] = 1.0  # so that only these channels matter
    kept = peers.pruned(digits_env, peers.PRUNERS["taylor-uniform"], 0.75, slopes).stages[0][0].bn1.weight
    assert torch.equal(kept, norm[3:7])


def test_the_outputs_of_the_classifier_are_found(digits_env):
    assert peers.classifier(digits_env) == ["fc"]


def test_students_are_trained_alike_once_and_what_fails_says_why(digits_env, tmp_path):
    env, limit = digits_env, 0.5 * digits_env.cost_model.teacher["macs"]
    plan = peers.uniform_plan(env, limit)

    def explode():
        raise ZeroDivisionError("a | b\nmore")

    broken = peers.Contestant(peers.PREFIX + "broken", explode)
    these = [peers.of_plan(env, "uniform", plan), peers.of_library(env, "magnitude-global", limit), broken]
    settings, rows = peers.compare(env, these, limit, 1, 2, tmp_path, progress=False)
    assert [(r.student.removeprefix(peers.PREFIX), r.seed) for r in rows] == [
        ("uniform", 0), ("uniform", 1), ("magnitude-global", 0), ("magnitude-global", 1), ("broken", 0)]  # fmt: skip
    student = build_student(env.teacher.module, env.graph, plan)
    env.evaluator.prepare(student, plan)
    recipe = finetuning_recipe(len(env.data.train), 1, torch.device("cpu"))
    done = finetune(student, env.whole, env.data, recipe, load_task("classification"), seed=1, progress=False)
    assert (rows[1].test, rows[1].validation_start) == (done.metric_test, done.history[0])
    assert all(0.4 < r.macs <= 0.5 and r.params < 1 and r.test > r.test_start for r in rows[2:4])
    path = tmp_path / "peers.jsonl"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:30])
    assert (
        peers.compare(env, these, limit, 1, 2, tmp_path, progress=False) == (settings, rows)
        and path.read_text() == text
    )
    assert not list(tmp_path.glob("*.checkpoint"))
    table = peers.table(settings, rows)
    middle, half = mean_interval([r.test for r in rows[:2]])
    assert f"{middle:.2%} ± {100 * half:.2f}" in table and "failed: ZeroDivisionError: a \\| b |" in table
    gap = 100 * (middle - (rows[2].test + rows[3].test) / 2)
    assert f"less torch-pruning magnitude-global (the best peer on test images): {gap:+.2f} ± " in table
    with pytest.raises(UserError, match="was made with epochs 1, not 2"):
        peers.compare(env, these, limit, 2, 2, tmp_path, progress=False)


def test_a_network_that_torch_pruning_breaks_is_reported(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        env = LayerRemovalEnv(teacher=Rigid().eval(), data=load_data("digits"), budget={"macs": 0.5})
    limit = 0.5 * env.cost_model.teacher["macs"]
    rows = peers.compare(
        env, [peers.of_library(env, "magnitude-uniform", limit)], limit, 1, 1, tmp_path, progress=False
    )[1]
    assert rows[0].failed.startswith("RuntimeError: ")


def test_the_command_takes_the_students_of_searches(tmp_path):
    def call(*arguments):
        return CliRunner().invoke(main, [*arguments])

    search = (
        "search",
        "--agent",
        "uniform",
        "--evaluations",
        "1",
        "--finetune-epochs",
        "0",
        "--out",
        str(tmp_path / "a"),
    )
    assert call(*search, "--budget", "macs=0.3").exit_code == 0
    command = ("bench", "peers", "--finetune-epochs", "1", "--seeds", "1", "--method", "magnitude-uniform",
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
    shown = CliRunner().invoke(main, ["bench", "peers", "--show", str(file)])
    assert shown.exit_code == 0 and shown.output.count("\n| ") == 8 and "the best peer on test images" in shown.output
    missing = CliRunner().invoke(main, ["bench", "peers", "--show", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2 and "there are no results in" in missing.output
