"""A curve: searches at several budgets that share what is measured, one folder, one table, one picture."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from test_cli import refused, works

import compress_env.curve as curves
from compress_env import compress, finishing, objective
from compress_env.errors import UserError
from compress_env.problem import Problem
from compress_env.report import page
from compress_env.resources.cost_model import CostModel
from compress_env.search.run import search
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec

BUDGETS = [{"macs": "50%"}, {"macs": "25%"}]
FOLDERS = ["macs-25%", "macs-25%-uniform", "macs-50%", "macs-50%-uniform"]
SHORT = dict(agent="model", evaluations=3, finetune_epochs=1, progress=False)
TYPED = ["search", "--budget", "macs=50%,25%", "--evaluations", "3", "--finetune-epochs", "1", "--quiet"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No exports, no latency and no pages of single runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_report", lambda folder: (folder / "report.html").touch())
        patch.setattr(finishing, "export_all", lambda *_, **__: {})
        patch.setattr(CostModel, "compare", lambda self, student, plan: (dict(self.teacher), self.count(student, plan)))
        yield


def counted(patch, place, name, fails_at=None):
    """The calls of a function; one of them may be Ctrl-C."""
    calls, own = [], getattr(place, name)

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return own(*arguments, **options)

    patch.setattr(place, name, call)
    return calls


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    """A curve, undisturbed, with what was measured for it."""
    with pytest.MonkeyPatch.context() as patch:
        measured, built = counted(patch, objective, "measure"), counted(patch, Problem, "build")
        found = compress(budgets=BUDGETS, out=tmp_path_factory.mktemp("runs") / "curve", **SHORT)
    return found, measured, built


def test_what_all_budgets_need_is_measured_once(curve):
    _, measured, built = curve
    assert len(measured) == len(built) == 1


def test_the_table_has_the_numbers_of_each_folder(curve):
    found = curve[0]
    data = json.loads((found.folder / "curve.json").read_text())
    assert [row["folder"] for row in data["rows"]] == data["runs"][2:] + data["runs"][:2] == FOLDERS
    assert [row["budget"] for row in data["rows"]] == ["25%", "25%", "50%", "50%"]
    assert data == found.table.to_json() | {"runs": data["runs"]}
    for row, done in zip(data["rows"], found.runs):
        result = json.loads((found.folder / row["folder"] / "result.json").read_text())
        assert done.folder == found.folder / row["folder"] and json.loads(json.dumps(done.result.to_json())) == result
        assert (row["student"], row["teacher"], row["limits"]) == (result["student"], result["teacher"], result["budget"])
        assert row["evaluations"] == result["evaluations"] == (1 if row["agent"] == "uniform" else 3)
        assert row["feasible"] and row["student"]["macs"] <= row["limits"]["macs"]
    assert data["teacher"] == data["rows"][0]["teacher"]
    lines = (found.folder / "curve.md").read_text().splitlines()
    assert lines == found.table.text().splitlines() and len(lines) == 3 + len(FOLDERS)
    macs = data["rows"][0]["student"]["macs"]
    assert f"{macs / 1e3:.0f}K ({macs / 763_520:.1%}".replace("%", "\u00a0%") in lines[3]


def test_picture_and_page_show_every_student(curve):
    found = curve[0].folder
    svg = ElementTree.parse(found / "curve.svg").getroot()
    told = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"model", "uniform", "teacher", "test accuracy, %", "file size, KB", "budget: MACs, % of the teacher"} <= {*told}
    shown = (found / "report.html").read_text()
    assert all(f'href="{name.replace("%", "%25")}/report.html"' in shown for name in FOLDERS) and "Not there yet" not in shown
    assert all((found / name / "report.html").is_file() for name in FOLDERS)


def test_commands_for_a_run_name_the_runs_of_a_curve(curve):
    for command in ("finetune", "validate"):
        told = refused(command, "--out", curve[0].folder)
        assert f"give one of its folders that have one: {', '.join(sorted(FOLDERS))}" in told


def test_each_search_is_the_one_that_there_would_be_alone(curve):
    whole = objective.Objective(EnvironmentSpec.of_keywords(budget={"macs": "25%"}))
    alone = search(whole, "model", 3, progress=False).trials
    assert all(a.same(b) for a, b in zip(alone, RunFolder(curve[0].folder / "macs-25%").trials(), strict=True))
    first, second = (whole.at({"macs": share}).evaluator for share in (0.3, 0.4))
    first(alone[0].plan)
    assert first.known(alone[0].plan) and not second.known(alone[0].plan)
    assert first.teacher_outputs is second.teacher_outputs is whole.evaluator.teacher_outputs


def test_a_curve_goes_on_after_an_interruption_and_to_further_budgets(curve, tmp_path, monkeypatch):
    out = tmp_path / "curve"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, finishing, "finetune", fails_at=2)
        compress(budgets=BUDGETS[:1] + [{"macs": 0.25}], out=out, **SHORT)
    assert [row["folder"] for row in json.loads((out / "curve.json").read_text())["rows"]] == ["macs-50%"]
    assert "Not there yet: macs-50%-uniform, macs-25%, macs-25%-uniform." in (out / "report.html").read_text()
    trained, measured = counted(monkeypatch, finishing, "finetune"), counted(monkeypatch, objective, "measure")
    printed = json.loads(works(*TYPED, "--out", out, "--resume", "--json"))
    assert len(trained) == 3 and not measured
    assert printed["rows"] == curve[0].table.to_json()["rows"]
    for options, message in (
        (["--resume", "--budget", "macs=50%,60%"], "it has the budget of macs-25%, too; give all of them, and further ones"),
        (["--resume", "--budget", "macs=50%,25%", "--seed", "1"], "it was begun with seed=0, not 1"),
        (["--resume", "--budget", "macs=50%,25%", "--evaluations", "2"], "has 3 evaluations already, and each budget of a curve"),
        (["--budget", "macs=50%,25%"], "add --resume to go on"),
    ):
        assert message in refused("search", "--evaluations", 3, *options, "--out", out)
    assert "is the folder of one search" in refused(*TYPED, "--out", out / "macs-25%")


@pytest.mark.parametrize("options, message", [
    ({"budgets": [{"macs": 0.5}]}, "takes two budgets at least, and 1 was given"),
    ({"budgets": {"macs": 0.5}}, r"have to be a list of budgets, got \{'macs': 0.5\}"),
    ({"budgets": [{"macs": 0.5}, {"params": 0.5}]}, "on the same resources"),
    ({"budgets": [{"macs": 0.5, "params": 0.5}, {"macs": 0.4, "params": 0.4}]}, "the limits on macs and params differ"),
    ({"budgets": [{"macs": 0.5}, {"macs": "20%..30%"}]}, "macs: a range is no point of a curve"),
    ({"budgets": [{"macs": 0.5}, {"macs": "50%"}]}, "macs=50% is macs=0.5 once more"),
    ({"budgets": [{"macs": 0.5}, {"macs": "fast"}]}, "cannot read the budget 'fast' of macs"),
    ({"budgets": BUDGETS, "budget": {"macs": 0.5}}, "take the place of one"),
    ({"budgets": BUDGETS, "max_accuracy_drop": 1}, "give it one range"),
    ({"budgets": BUDGETS, "finetune_epochs": 0}, "at least 1"),
    ({"budgets": BUDGETS, "agent": "modell"}, "did you mean 'model'"),
])  # fmt: skip
def test_what_makes_no_curve_is_refused_before_the_teacher_is_loaded(options, message, tmp_path, monkeypatch):
    built = counted(monkeypatch, Problem, "build")
    with pytest.raises(UserError, match=message):
        compress(out=tmp_path / "curve", **SHORT | options)
    assert not built and not (tmp_path / "curve").exists()


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    measured = counted(monkeypatch, objective, "measure")
    line = refused("search", "--budget", "macs=50%,0.1%", "--out", tmp_path / "curve")
    assert "the budget cannot be met: macs of 763.5" in line and not measured and not (tmp_path / "curve").exists()


def test_one_resource_varies_and_others_are_fixed():
    found = curves.points_of(curves.budgets_of({"params": "60%", "macs": "300K, 20%"}))
    assert [(point.label, point.folder) for point in found] == [("macs=300K", "macs-300000"), ("macs=20%", "macs-20%")]
    assert [point.budget for point in found] == [{"params": "60%", "macs": "300K"}, {"params": "60%", "macs": "20%"}]
    line = refused(*TYPED, "--budget", "params=20%,30%")
    assert "macs and params have several limits; give only one of them several" in line


def test_a_dry_run_says_what_all_of_it_takes(tmp_path):
    said = works(*TYPED, "--dry-run", "--out", tmp_path / "curve")
    assert said.startswith("2 budgets, 4 students to distil; ") and "; 8 evaluations " in said and "; 4 epochs of distillation" in said
    assert not (tmp_path / "curve").exists()
