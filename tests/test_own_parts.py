"""Parts of a user's own work everywhere alike: in budgets, as rankings, as losses of the full distillation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_cli import refused, works

from compress_env import compress
from compress_env.api import finish
from compress_env.errors import UserError
from compress_env.name_value import parse_setting
from compress_env.problem import Problem
from compress_env.resources import RESOURCES
from compress_env.search.store import RunFolder
from compress_env.spec import FinetuneSpec, ProblemSpec

OWN = """
import numpy as np
from compress_env.resources.base import Resource
from compress_env.surgery.ranking import Ranking

print("mine.py was run")

class Energy(Resource):
    unit = "mJ"
    def predict(self, view, widths): return 2.0 * view.parameters(widths)
    def count(self, student, example): return 2.0 * sum(p.numel() for p in student.parameters())

class Rank:
    NEEDS_INPUTS = False
    def rank(self, teacher, graph, inputs):
        return Ranking("mine", {name: np.arange(group.size)[::STEP] for name, group in graph.groups.items()})

class Half(Rank):
    def rank(self, teacher, graph, inputs):
        return Ranking("half", {name: np.arange(group.size // 2) for name, group in graph.groups.items()})

def nothing(student, teacher, labels, temperature):
    return 0.0 * student.sum()
"""
QUICK = ("--agent", "uniform", "--evaluations", 1)


@pytest.fixture(autouse=True)
def _no_exports(monkeypatch):
    """Exports take seconds, and have tests of their own."""
    monkeypatch.setattr("compress_env.finishing.export_all", lambda *_, **__: {})


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "a=b" / "mine.py"
    file.parent.mkdir()
    file.write_text(OWN.replace("STEP", "1"))
    return file


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_that_is_named_for_every_part_is_run_once(own, tmp_path, capfd):
    printed = works("search", *QUICK, "--finetune-epochs", 1, "--budget", f"{own}:Energy=40%", "--ranking", f"{own}:Rank",
                    "--loss", f"{own}:nothing", "--out", tmp_path / "a")  # fmt: skip
    assert (printed + capfd.readouterr().out).count("mine.py was run") == 1
    trial = lines(tmp_path / "a" / "trials.jsonl")[0]
    assert trial["evaluation"]["usage"]["energy"] <= trial["limits"]["energy"] == pytest.approx(0.4 * 2 * 77_754)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["recipe"]["loss"].startswith(f"{own}:nothing (") and result["recipe"]["epochs"] == 1
    assert RESOURCES.get(f"{own}:Energy") is RESOURCES.get(f"{own}:Energy") is RESOURCES.get("energy")


def test_a_ranking_that_was_changed_gives_other_outcomes(own, tmp_path):
    outcomes = []
    for number, step in enumerate(("1", "-1", "1")):
        own.write_text(OWN.replace("STEP", step))
        out = tmp_path / f"run{number}"
        works("search", *QUICK, "--finetune-epochs", 0, "--budget", "macs=0.3", "--ranking", f"{own}:Rank", "--out", out)
        trial = lines(out / "trials.jsonl")[0]
        outcomes.append((trial["ranking"], trial["evaluation"]["kl"], (out / "sensitivities.json").read_text().split('"seconds"')[0]))
    assert outcomes[0] == outcomes[2]
    assert all(a != b for a, b in zip(outcomes[0], outcomes[1]))


def test_a_ranking_may_be_an_object_and_has_to_order_every_channel(own):
    class Reverse:
        NEEDS_INPUTS = False

        def rank(self, teacher, graph, inputs):
            from compress_env.surgery.ranking import Ranking

            return Ranking("reverse", {n: np.arange(g.size)[::-1] for n, g in graph.groups.items()})

    problem = Problem.build(ProblemSpec(ranking=Reverse()))
    assert all(order[0] == len(order) - 1 for order in problem.ranking.orders.values())
    with pytest.raises(UserError, match="orders the group .* wrongly: it needs each of its 16 channels once"):
        Problem.build(ProblemSpec(ranking=f"{own}:Half"))
    with pytest.raises(UserError, match="needs NEEDS_INPUTS, true or false, and rank"):
        Problem.build(ProblemSpec(ranking=f"{own}:nothing"))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    works("search", *QUICK, "--finetune-epochs", 0, "--out", out)
    return out


def test_the_recipe_of_fine_tuning_can_be_chosen_and_is_recorded(searched):
    works("finetune", "--out", searched, "--epochs", 1, "--lr", 0.007, "--batch-size", 50, "--loss", "dkd")
    recipe = json.loads((searched / "result.json").read_text())["recipe"]
    assert (recipe["epochs"], recipe["lr"], recipe["batch_size"], recipe["loss"]) == (1, 0.007, 50, "dkd")
    assert (recipe["temperature"], recipe["label_weight"]) == (4.0, 1.0)
    trained = (searched / "student.safetensors").read_bytes()
    works("finetune", "--out", searched, "--epochs", 1)
    recipe = json.loads((searched / "result.json").read_text())["recipe"]
    assert (recipe["lr"], recipe["batch_size"], recipe["loss"]) == (0.004, 64, "hinton")
    assert (searched / "student.safetensors").read_bytes() != trained


def test_a_loss_from_python_and_from_a_file_is_the_one_that_is_trained_with(searched, own):
    def nothing(student, teacher, labels, temperature):
        return 0.0 * student.sum()

    for loss in (nothing, f"{own}:nothing"):
        done = finish(RunFolder(searched), 1, loss=loss, lr=1e-9, progress=False)
        assert done.result.recipe["loss"].split(" (")[0].endswith("nothing")
        assert done.finetuned.last_validation == pytest.approx(done.finetuned.history[0], abs=0.02)  # nothing was learned


def test_temperature_and_label_weight_reach_the_loss_and_the_record(searched):
    seen = set()

    def loss(student, teacher, labels, temperature, label_weight=0.2):
        seen.add((temperature, label_weight))
        return 0.0 * student.sum()

    for settings, expected in (({}, (4.0, 0.2)), ({"temperature": 2.0, "label_weight": 0.5}, (2.0, 0.5))):
        seen.clear()
        recipe = finish(RunFolder(searched), 1, loss=loss, lr=1e-9, progress=False, **settings).result.recipe
        assert seen == {expected} and (recipe["temperature"], recipe["label_weight"]) == expected


@pytest.mark.parametrize("option, told", [
    (("--loss", "hintn"), "no loss 'hintn'; did you mean 'hinton'?"), (("--lr", "nan"), "no finite number"),
    (("--lr", "0"), "lr has to be a positive number"), (("--temperature", "0"), "temperature has to be a positive number"),
    (("--loss", "mimic", "--temperature", "2"), "the loss 'mimic' has no temperature"), (("--label-weight", "2"), "not in the range"),
    (("--batch-size", "0"), "0 is not in the range"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_used_is_refused_before_the_search(searched, tmp_path, option, told):
    assert told in refused("finetune", "--out", searched, *option)
    if option[0] == "--loss" and len(option) == 2:
        assert told in refused("search", *QUICK, *option, "--out", tmp_path / "a") and not (tmp_path / "a").exists()


def test_a_search_from_python_may_leave_the_distillation_for_later(tmp_path):
    done = compress(agent="uniform", evaluations=1, finetune_epochs=0, out=tmp_path / "a", progress=False)
    assert done.distilled is None and done.report().exists()
    assert sum(p.numel() for p in done.student.parameters()) == done.trials[0].evaluation.usage["params"]
    with pytest.raises(UserError, match="no argument 'rate'"):
        compress(finetuning={"rate": 1})
    with pytest.raises(UserError, match="epochs has to be a whole number"):
        FinetuneSpec(epochs=0)


@pytest.mark.parametrize("text, parts", [
    ("macs=0.5", ("macs", 0.5)), ("a=b/mine.py:Energy=40%", ("a=b/mine.py:Energy", "40%")), ("start=a=b", ("start", "a=b")),
    ("loss=mine.py:loss", ("loss", "mine.py:loss")),
])  # fmt: skip
def test_a_path_in_a_setting_may_hold_an_equals_sign(text, parts):
    assert parse_setting(text) == parts
