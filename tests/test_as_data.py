"""Results as data: tables, JSON on the terminal, options from files, and the student of a folder in one call."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from test_cli import refused, works

import compress_env
from compress_env.cli.main import main
from compress_env.errors import UserError
from compress_env.report.trials import as_latex
from compress_env.search.store import RunFolder
from compress_env.search.trials import Trials


@pytest.fixture
def run(finished):
    return finished


def test_json_of_a_search_is_its_result_and_quiet_says_nothing_else(run):
    out, printed, errors = run
    assert json.loads(printed) == json.loads((out / "result.json").read_text())
    assert errors == ""


def test_trials_as_csv_and_json_have_every_number(run):
    recorded = RunFolder(run[0]).trials()
    rows = list(csv.DictReader(io.StringIO(works("trials", run[0], "--csv"))))
    objects = json.loads(works("trials", run[0], "--json"))
    assert len(rows) == len(objects) == len(recorded) == 4
    for row, found, trial in zip(rows, objects, recorded):
        assert float(row["reward"]) == found["reward"] == trial.reward
        assert float(row["macs_share"]) == found["macs_share"] == trial.evaluation.usage["macs"] / 763_520
        assert json.loads(row["plan"]) == found["plan"] == json.loads(trial.plan.to_json())
        assert (found["macs_limit"], found["feasible"], found["failed"]) == (381_760, True, "")
    assert "params_limit" not in rows[0]


def test_the_best_trials_come_first_and_each_plan_once(run):
    recorded = RunFolder(run[0]).trials()
    best = [row["index"] for row in json.loads(works("trials", run[0], "--best", 2, "--json"))]
    assert best == [trial.index for trial in recorded.best_first()[:2]]
    assert works("trials", run[0], "--best", 1).splitlines()[1].split()[0] == str(best[0])


def test_latex_escapes_what_it_would_take_for_commands(run):
    trials = RunFolder(run[0]).trials()
    lines = as_latex(trials).splitlines()
    assert lines[0] == r"\begin{tabular}{rrrrrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[2] == r"trial & reward & accuracy & kl & macs, \% & fits & removed \\"
    assert len(lines) == 4 + 4 + 2


def test_trials_are_a_data_frame_or_name_what_it_takes(run, monkeypatch):
    trials = RunFolder(run[0]).trials()
    frame = pytest.importorskip("pandas") and trials.to_dataframe()
    assert list(frame.index) == [0, 1, 2, 3] and frame["reward"].max() == max(t.reward for t in trials)
    assert frame.dtypes["feasible"].kind == "b" and list(Trials().to_dataframe()) == []
    monkeypatch.setattr("compress_env.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "compress-env\[pandas\]"'):
        trials.to_dataframe()


def test_notebooks_show_tables(run):
    trials = RunFolder(run[0]).trials()
    assert trials._repr_html_().count("<tr>") == 5
    page = compress_env.inspect("resnet8-digits")._repr_html_()
    assert "<td>\u2003stages.0.0.conv1</td>" in page and "<td>763,520</td>" in page
    done = compress_env.compress(agent="random", evaluations=4, finetune_epochs=2, out=run[0], resume=True, progress=False)
    assert "<td>Test accuracy</td>" in done._repr_html_() and str(done.report()) in done._repr_html_()
    assert isinstance(done.trials, Trials) and len(done.trials) == 4
    student = compress_env.load_student(run[0])
    inputs = torch.rand(2, 1, 8, 8)
    assert torch.equal(student(inputs), done.student(inputs)) and not student.training


def test_the_student_of_a_folder_needs_one_that_was_distilled_and_trust_for_code(run, tmp_path):
    settings = json.loads((run[0] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="has no distilled student yet; compress-env finetune --out"):
        compress_env.load_student(tmp_path)
    settings["environment"]["problem"]["teacher"] = "mine.py:make"
    (tmp_path / "run.json").write_text(json.dumps(settings))
    (tmp_path / "student.safetensors").touch()
    with pytest.raises(UserError, match="names code to be run .*mine.py:make"):
        compress_env.load_student(tmp_path)


def test_the_student_of_a_distillation_without_a_search(tmp_path):
    done = compress_env.distil("resnet8-digits", "vgg7-digits", epochs=1, out=tmp_path, progress=False)
    inputs = torch.rand(2, 1, 8, 8)
    assert torch.equal(compress_env.load_student(tmp_path)(inputs), done.student(inputs))


def test_tables_are_printed_as_json(run):
    assert "random" in json.loads(works("list", "--json"))["agents"]
    parts = json.loads(works("inspect", "--quiet", "--json"))
    assert parts["usage"]["macs"] == 763_520 and parts["rows"][0]["name"] == "conv1"
    assert json.loads(works("validate", "--out", run[0], "--count", 1, "--json", "--quiet")) == {"plans": 1, "differ": []}


FILE = """
evaluations: 3
agent: random
finetune-epochs: 0
budget: {macs: 30%, params: 0.5}
evaluator: {validation_images: 100, loss: null}
protect: conv1
mean: [0.5]
std: [0.25]
"""


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path):
    (tmp_path / "a.yaml").write_text(FILE)
    works("search", "--config", tmp_path / "a.yaml", "--evaluations", 2, "--quiet", "--out", tmp_path / "a")
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (run["search"]["agent"], run["search"]["evaluations"]) == ("random", 2)
    assert run["environment"]["budget"] == {"macs": "30%", "params": 0.5}
    assert run["environment"]["evaluator"]["validation_images"] == 100
    assert (run["environment"]["problem"]["protect"], run["environment"]["problem"]["mean"]) == (["conv1"], [0.5])
    arguments = ("--config", tmp_path / "a" / "run.json", "--finetune-epochs", 0, "--quiet", "--out", tmp_path / "b")
    works("search", *arguments)
    again = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (again["environment"], again["search"]) == (run["environment"], run["search"])


@pytest.mark.parametrize("text, told", [
    ("evaluation: 3", "no option 'evaluation'; did you mean 'evaluations'?"),
    ("evaluations: many", "'many' is not a valid integer"),
    ("resume: true", "no option 'resume'"),
    ("- a", "holds no options"),
    ("a: [", "cannot be read as YAML"),
    ("reward: mine.py:own", "names code to be run (reward: mine.py:own)"),
    ("budget: {'energy.py:Energy': 0.5}", "names code to be run (budget: energy.py:Energy)"),
    ("mean: [a, b]", "a.yaml: mean: 'a,b' is not numbers with commas between them"),
    ("mean: []", "a.yaml: mean: '' is not numbers with commas between them"),
    ("mean: [0.5, [1]]", "a.yaml: mean: [0.5, [1]] is no value of --mean"),
    ("budget: 0.5", "a.yaml: budget: '0.5' is not RESOURCE=LIMIT, for example macs=0.5"),
    ("budget: [macs=0.5, macs=0.4]", "a.yaml: budget: macs is given twice"),
    ("budget: {macs: 2020-01-01}", "cannot read the budget '2020-01-01' of macs"),
    ("protect: 5", "no layer is called '5'"),
    ("protect: {a: 1}", "a.yaml: protect: {'a': 1} is no value of --protect"),
    ("evaluator: 5", "a.yaml: evaluator: '5' is not NAME=VALUE"),
    ("agent-option: [1, 2]", "a.yaml: agent-option: '1' is not NAME=VALUE"),
    ("agent-option: &a {x: *a}", "a.yaml: agent-option: Circular reference"),
    ("seed: 2020-01-01", "a.yaml: seed: '2020-01-01' is not a valid integer range"),
    ("evaluations: 2.7", "a.yaml: evaluations: '2.7' is not a valid integer range"),
    ("evaluations: true", "a.yaml: evaluations: 'true' is not a valid integer range"),
    ("finetune_epochs: 2.7", "a.yaml: finetune_epochs: '2.7' is not a valid integer range"),
    ("min_width: yes", "a.yaml: min_width: 'true' is not a valid float range"),
    ("tensorboard: 3", "a.yaml: tensorboard: '3' is not a valid boolean"),
    ("data: {a: b}", "a.yaml: data: {'a': 'b'} is no value of --data"),
])  # fmt: skip
def test_a_file_of_options_that_is_wrong_is_refused_by_name(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text)
    assert told in refused("search", "--config", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_values_of_a_file_are_read_as_if_they_were_typed(tmp_path):
    (tmp_path / "a.yaml").write_text("""
mean: 0.5
std: [0.25]
protect: [conv1, stages.0.*]
removable: stages.*
evaluations: "7"
evaluator: refit=no
agent-option: {start: a, rate: 1.0e-3, sizes: [8, 8]}
tensorboard: yes
min-width: 0.3
seed: 2020-01-01
timeout: [60]
""")
    arguments = ["--config", str(tmp_path / "a.yaml"), "--seed", "5"]  # what is not used need not be right
    with main.commands["search"].make_context("search", arguments) as context:
        given = context.params
    assert (given["mean"], given["std"], given["protect"]) == ((0.5,), (0.25,), ("conv1", "stages.0.*"))
    assert (given["removable"], given["evaluations"], given["evaluator"]) == (("stages.*",), 7, {"refit": False})
    assert given["agent_options"] == {"start": "a", "rate": 0.001, "sizes": [8, 8]}
    assert (given["tensorboard"], given["min_width"], given["seed"], given["timeout"]) == (True, 0.3, 5, 60.0)


def test_code_that_the_command_line_names_or_trusts_is_run(tmp_path):
    (tmp_path / "a.yaml").write_text(f"reward: {tmp_path}/none.py:own")
    for more in (("--trust",), ("--reward", f"{tmp_path}/none.py:own")):
        assert "there is no file" in refused("search", "--config", tmp_path / "a.yaml", *more, "--out", tmp_path / "run")


def test_a_run_with_objects_or_settings_without_option_is_told_apart(tmp_path, run):
    settings = json.loads((run[0] / "run.json").read_text())
    settings["environment"]["problem"]["teacher"] = {"python object": "Net"}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert "was a Python object (Net); give --teacher" in refused("search", "--config", tmp_path / "run.json", "--out", tmp_path / "x")
    settings["environment"]["shaping"] = False
    (tmp_path / "run.json").write_text(json.dumps(settings))
    told = refused("search", "--config", tmp_path / "run.json", "--out", tmp_path / "x")
    assert "shaping=False, which is set from Python only" in told
