"""Pruners of torch-pruning beside our students: the same MACs, the same fine-tuning, failures named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import fx, nn

from benchmarks.peers import compare as peers
from benchmarks.peers import fastnas, pruners
from benchmarks.peers.__main__ import main as command_line
from benchmarks.peers.compare import PeerResult
from benchmarks.peers.curves import curves
from benchmarks.peers.limits import Bound
from benchmarks.peers.students import OURS, PEER, Contestant, Makers, students, widths_of
from benchmarks.peers.table import table
from benchmarks.trained import metric
from compress_env.allocation import sensitivities
from compress_env.bench.statistics import mean_interval
from compress_env.cli.main import main
from compress_env.data import load_data
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import finetuning_recipe
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.resources import RESOURCES
from compress_env.resources.latency import stopwatch
from compress_env.resources.latency.stopwatch import Paired, Stopwatch
from compress_env.spec import EvaluatorSettings, FinetuneSpec, ProblemSpec
from compress_env.surgery.plan import Plan

MACS = RESOURCES.get("macs")


@pytest.fixture(scope="module")
def problem():
    return Problem.build(ProblemSpec())


@pytest.fixture
def quick(monkeypatch):
    """Measurements of time that are short."""
    monkeypatch.setattr(stopwatch, "SECONDS", 0.01)
    monkeypatch.setattr(stopwatch, "PAIRS", 3)
    monkeypatch.setattr(stopwatch, "PATIENCE", 1)


class Rigid(nn.Module):
    """A network whose reshape names its number of channels, which torch-pruning leaves as it is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3)
        self.mix = nn.Conv1d(12, 12, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.mix(self.conv(x).relu().reshape(x.shape[0], 12, 36)).mean(2))


def makers_of(problem, folder, **budget):
    return Makers(Bound.of(problem, budget), folder)


@pytest.mark.parametrize("name", ["magnitude-uniform", "taylor-global"])
def test_a_pruner_gives_the_largest_student_within_the_budget(problem, name, monkeypatch):
    monkeypatch.setattr(pruners, "IMAGES", 32)
    bound = Bound.of(problem, {"macs": "50%"})
    before = {k: v.clone() for k, v in problem.teacher.module.state_dict().items()}
    model, ratio, history = pruners.shrunk(pruners.PRUNERS[name], bound)
    inputs = problem.data.calibration(3)
    used = MACS.count(model, inputs[:1]) / problem.cost_model.teacher["macs"]
    assert 0.4 < used <= 0.5 and used == bound.used(model) and model(inputs).shape == (3, 10)
    assert bound.used(pruners.pruned(problem, pruners.PRUNERS[name], ratio - 0.07)[0]) > 0.5
    assert torch.equal(pruners.repeated(problem, json.loads(json.dumps(history)))(inputs), model(inputs))
    assert all(torch.equal(v, problem.teacher.module.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in [*problem.teacher.module.parameters(), *model.parameters()])


def test_the_pruners_rank_by_what_they_are_named_after(problem, monkeypatch):
    norm = problem.teacher.module.stages[0][0].bn1.weight
    kept = pruners.pruned(problem, pruners.PRUNERS["bn-scale-uniform"], 0.5)[0].stages[0][0].bn1.weight
    assert torch.equal(kept.abs().sort().values, norm.abs().sort().values[8:])
    looks = []

    def slopes(_problem, model):  # only the last two channels matter, and it is looked before each step
        looks.append(len(model.stages[0][0].bn1.weight))
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        model.stages[0][0].conv1.weight.grad[-2:] = 1.0

    monkeypatch.setattr(pruners, "gradients", slopes)
    kept = pruners.pruned(problem, pruners.PRUNERS["taylor-uniform"], 0.75)[0].stages[0][0].bn1.weight
    assert len(kept) == 4 and torch.equal(kept[-2:], norm[-2:]) and len(looks) == pruners.STEPS and looks[0] > looks[-1] > 4


def test_widths_are_multiples_and_only_layers_of_a_kind_compete(problem):
    def widths(name, ratio):
        return dict(widths_of(problem, pruners.pruned(problem, pruners.PRUNERS[name], ratio, 8)[0]).widths)

    everywhere, alike = widths("magnitude-global", 0.5), widths("magnitude-isomorphic", 0.5)
    assert all(w % 8 == 0 for w in [*everywhere.values(), *alike.values()]) and everywhere != alike
    assert set(widths("magnitude-global", 0.99).values()) == {8}
    left = [16 - pruners._Pruner._round_to(None, gone, 16, 8) for gone in (1, 8, 9, 16)]
    assert left == [16, 8, 8, 8]  # and never none, which torch-pruning would take for all


def test_a_measured_limit_is_met_by_rounded_widths_none_of_which_is_timed_twice(problem, monkeypatch):
    timed = []

    def used(_self, model):
        timed.append(widths_of(problem, model))
        return sum(p.numel() for p in model.parameters()) / problem.cost_model.teacher["params"]

    monkeypatch.setattr(Bound, "used", used)
    monkeypatch.setattr(Bound, "share", 0.6)
    model, _, _ = pruners.shrunk(pruners.PRUNERS["magnitude-global"], Bound(problem, "latency", 1.0, {}))
    assert len(timed) == len(set(timed)) > 1
    assert 0.3 < used(None, model) <= 0.6 and all(w % 8 == 0 for w in dict(timed[-1].widths).values())


def test_time_near_the_limit_is_measured_twice_and_all_are_timed_as_ours(problem, monkeypatch):
    given = iter([0.9, 0.49, 0.53])
    seen = []

    def pair(_self, model):
        seen.append(model)
        return Paired(next(given), 0, 1, (2.0, 4.0), 15)

    monkeypatch.setattr(Stopwatch, "pair", pair)
    monkeypatch.setattr(Bound, "measured", True)
    monkeypatch.setattr(Bound, "share", 0.5)
    bound = Bound(problem, "latency", 1.0, {})
    module = problem.teacher.module
    assert (bound.used(module), bound.used(module)) == (0.9, pytest.approx(0.51))
    assert all(isinstance(model, fx.GraphModule) for model in seen)


def test_the_outputs_of_the_classifier_are_found(problem):
    assert pruners.classifier(problem) == ["fc"]


def test_students_are_trained_alike_once_and_what_fails_says_why(problem, tmp_path, quick):
    makers = makers_of(problem, tmp_path, macs=0.5)
    plan = makers.uniform()
    assert MACS.count(problem.student(plan), problem.data.calibration(1)) <= makers.bound.value

    def explode():
        raise ZeroDivisionError("a | b\nmore")

    broken = Contestant("broken", PEER, explode, explode)
    these = [makers.plan("uniform", lambda: plan), *map(makers.peer, ("magnitude-global", "magnitude-global+refit")), broken]

    def again(epochs, seeds):
        return peers.compare(makers_of(problem, tmp_path, macs=0.5), these, epochs, seeds, tmp_path, progress=False)

    again((0, 1), 1)
    settings, rows = again((1, 0), 2)  # further ones are added
    names = ["uniform", "torch-pruning magnitude-global", "magnitude-global's widths, refitted"]
    assert [(r.student, r.epochs, r.seed) for r in rows] == [
        *((n, 0, 0) for n in names), ("broken", 0, 0), *((n, 1, 0) for n in names), *((n, 1, 1) for n in names)]  # fmt: skip
    student = Evaluator(problem, EvaluatorSettings()).prepared(plan)
    recipe = finetuning_recipe(len(problem.data.train), 1, torch.device("cpu"))
    done = finetune(student, problem.whole, problem.data, recipe, problem.task, seed=1, progress=False)
    assert (rows[7].test, rows[7].history, rows[0].validation) == (done.metric_test, done.history, done.history[0])
    assert rows[7].seconds > 0 and rows[7].lr == recipe.lr and rows[0].test == rows[7].test_start
    peer, widths = rows[5], rows[6]
    assert 0.4 < peer.macs <= 0.5 and peer.macs == pytest.approx(widths.macs) and widths.params == peer.params < 1
    assert peer.test_start < widths.test_start and peer.test > peer.test_start and set(peer.latency) == {"eager", "onnxruntime"}
    path = tmp_path / "peers.jsonl"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:30])
    assert again((0, 1), 2)[1][:-1] == rows[:-1] and len(path.read_text().splitlines()) == len(lines)
    assert not list(tmp_path.glob("*.checkpoint"))
    printed = table(settings, rows)
    middle, half = mean_interval([r.test for r in rows if r.student == "uniform" and r.epochs])
    assert f"{middle:.2%} ± {100 * half:.2f}" in printed and "failed: ZeroDivisionError: a \\| b |" in printed
    gap = 100 * (middle - mean_interval([rows[5].test, rows[8].test])[0])
    assert f"uniform less torch-pruning magnitude-global (the best peer): {gap:+.2f} ± " in printed
    assert "uniform less magnitude-global's widths, refitted (the best of the peers' widths" in printed
    assert "uniform reaches what torch-pruning magnitude-global has after 1 epoch (" in printed
    assert curves(settings, rows).count("test accuracy, %") == 1 and curves(settings, rows[:4]) == ""
    few = FinetuneSpec(examples=32, loss="mimic")
    told, (own,) = peers.compare(makers_of(problem, tmp_path, macs=0.5), these[:1], (1,), 1, tmp_path / "few", few, progress=False)
    assert (told["examples"], told["loss"]) == (32, "mimic") and own.test_start == rows[0].test_start and own.test != rows[3].test
    with pytest.raises(UserError, match="was made with lr None, not 0.5"):
        peers.compare(makers_of(problem, tmp_path, macs=0.5), these, (1,), 2, tmp_path, FinetuneSpec(lr=0.5), progress=False)


def test_the_table_chooses_on_validation_images_and_says_how_many_epochs_are_needed():
    def row(student, side, epochs, validation, test):
        return PeerResult(student, side, epochs=epochs, how='{"removed": ["a"], "widths": {}}', validation=validation, test=test)

    rows = [row("ours", OURS, 0, 0.80, 0.80), row("other", OURS, 0, 0.85, 0.70), row("ours", OURS, 3, 0.87, 0.86),
            row("good", PEER, 3, 0.84, 0.83), row("lucky", PEER, 3, 0.83, 0.90), row("ours", OURS, 1, 0.85, 0.84)]  # fmt: skip
    settings = {"teacher": "t", "data": "d", "share": 0.6, "resource": "latency", "where": "here", "teacher_validation": 1.0,
                "teacher_test": 1.0}  # fmt: skip
    printed = table(settings, rows)
    assert "After 3 epochs, best on validation images: ours less good (the best peer): +3.00 points on test images (1" in printed
    assert "ours reaches what good has after 3 epochs (83.00% test) in 1 epoch." in printed and "| ours | 1 |" in printed


def test_fastnas_gives_a_student_within_the_budget_which_is_kept(problem, tmp_path, quick):
    pytest.importorskip("modelopt", reason="NVIDIA's ModelOpt is not installed")
    makers = makers_of(problem, tmp_path, macs=0.5)
    these = [makers.peer("fastnas"), makers.peer("fastnas+refit")]
    (left, again), (widths, _) = students(makers, these, tmp_path, progress=False)
    assert 0.4 < left.macs == widths.macs <= 0.5 and left.how == widths.how and left.test_start < widths.test_start
    assert metric(problem, again(), problem.data.test) == left.test_start
    before = problem.student(Plan.from_json(left.how))
    assert not torch.equal(again().conv1.weight, before.conv1.weight)  # channels by its choice, not the first ones


def test_a_peer_that_is_not_installed_is_refused_before_anything_is_made(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(fastnas, "installed", lambda *_: False)
    with pytest.raises(UserError, match="FastNAS needs NVIDIA's ModelOpt; install it with: pip install nvidia-modelopt"):
        makers_of(problem, tmp_path, macs=0.5).peer("fastnas+refit")


def test_a_network_that_torch_pruning_breaks_is_reported(tmp_path, quick):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        problem = Problem.build(ProblemSpec(teacher=Rigid().eval(), data=load_data("digits")))
    makers = makers_of(problem, tmp_path, macs=0.5)
    rows = peers.compare(makers, [makers.peer("magnitude-uniform")], (1,), 1, tmp_path, progress=False)[1]
    assert rows[0].failed.startswith("RuntimeError: ")


def test_the_command_takes_the_students_of_searches(tmp_path, quick, monkeypatch):
    def call(*arguments, command=command_line):
        return CliRunner().invoke(command, [*arguments])

    monkeypatch.setattr(sensitivities, "SHARES", (0.5,))
    search = ("search", "--agent", "uniform", "--evaluations", "1", "--finetune-epochs", "0", "--out", str(tmp_path / "a"))
    assert call(*search, "--budget", "macs=0.3", command=main).exit_code == 0
    command = ("--finetune-epochs", "0", "--finetune-epochs", "1", "--seeds", "1", "--method", "magnitude-uniform",
               "--run", str(tmp_path / "a"), "--out", str(tmp_path / "p"))  # fmt: skip
    done = call(*command, "--budget", "macs=0.3")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "p" / "peers.md").read_text()
    names = ("uniform, seed 0 (a)", "uniform", "allocation", "torch-pruning magnitude-uniform")
    assert all(text.count(f"\n| {name} | ") == 1 for name in names)
    assert (tmp_path / "p" / "peers.svg").read_text().startswith("<?xml")
    rows = [json.loads(line) for line in (tmp_path / "p" / "peers.jsonl").read_text().splitlines()[1:]]
    assert all(0.2 < row["macs"] <= 0.3 for row in rows) and len(rows) == 8
    same = {name: ("how", "macs", "params", "validation", "test", "history").__contains__(name) for name in rows[0]}
    mine, found = ({n: v for n, v in rows[i].items() if same[n]} for i in (0, 2))
    assert mine == found  # the same plan, found and computed
    other = shutil.copytree(tmp_path / "a", tmp_path / "b")
    (other / "run.json").write_text((other / "run.json").read_text().replace('"resnet8-digits"', '"net.py:make"'))
    for arguments, told in (
        (("--budget", "macs=0.2"), "more than 20.0%; search with --budget macs=20.0%"),
        (("--budget", "macs=0.3", "--lr", "0.5"), "was made with lr"),
        (("--budget", "params=0.5"), "compared at equal MACs or equal time"),
        (("--budget", "macs=0.3", "--run", str(other)), "is a run with teacher 'net.py:make', not 'resnet8-digits'"),
        (("--budget", "macs=0.3", "--method", "magnitude-globl"), "did you mean 'magnitude-global'"),
    ):
        failed = call(*command, *arguments)
        assert failed.exit_code == 2 and told in failed.output, failed.output


def test_a_file_of_results_is_shown_without_training(tmp_path):
    file = Path(__file__).parent.parent / "benchmarks/peers/resnet20-50.jsonl"
    shown = CliRunner().invoke(command_line, ["--show", str(file)])
    assert shown.exit_code == 0 and shown.output.count("\n| ") == 8 and "(the best peer): -0.01 ± 0.22 points" in shown.output
    missing = CliRunner().invoke(command_line, ["--show", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2 and "there are no results in" in missing.output
