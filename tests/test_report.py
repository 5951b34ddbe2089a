"""The report and the pictures: what they show, and what they do with hostile, torn or missing input."""

import re
from dataclasses import replace

import numpy as np
import pytest

from compress_env.distill.finetune import Finetuned
from compress_env.envs.render import ansi, picture
from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.report import plots
from compress_env.report.formats import in_sentence, metric, quantity, unit_beside
from compress_env.report.page import write_report
from compress_env.search.result import NetworkResult, ResourceName, Result
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial
from compress_env.spec import EnvironmentSpec, SearchSpec
from compress_env.surgery.plan import Plan

HOSTILE = "<script>alert('x')</script> & $\\frac{"
COMMAND = 'compress-env search --teacher resnet8-digits --data digits --budget macs=0.5 --out "my run"'
TEACHER = {"params": 78000.0, "macs": 763520.0, "memory": 400000.0}


def layer(name, before, after, kind="conv"):
    status = "removed" if after == 0 else "kept" if after == before else "shrunk"
    return {"name": name, "kind": kind, "before": before, "after": after, "status": status,
            "macs_before": 1000.0 * before, "macs_after": 1000.0 * after}  # fmt: skip


def layers():
    return [
        layer("conv1", 16, 9),
        layer("stages.0.0.conv1", 16, 0),
        layer("bn", 16, 9, "norm"),
        layer("fc", 10, 10, "linear"),
    ]


def spent(used=380000.0):
    return {"macs": {"used": used, "limit": 381760.0, "teacher": 763520.0, "unit": "MACs"}}


def trial(index, reward, accuracy, share, failed="", removed=("stages.0.0",), resource="macs", **numbers):
    usage = {name: share * value for name, value in TEACHER.items()}
    evaluation = Evaluation({"accuracy": accuracy}, 0.1, usage, {"accuracy": 0.98}, TEACHER, failed)
    evaluation = replace(evaluation, **numbers)
    limits = {resource: 0.5 * evaluation.teacher_usage[resource]}
    plan = Plan.of(removed, {"conv1": 9})
    return Trial(index, plan, evaluation, limits, reward, {"score": reward}, False, 0, 0.4, "p" * 16, "r" * 16)


def trials():
    return [trial(0, 0.5, 0.5, 0.4), trial(1, 0.95, 0.95, 0.6), trial(2, 0.8123, 0.8, 0.5), trial(3, 0.7, 0.7, 0.5)]


def result(feasible=True):
    usage = {"params": 31000, "macs": 380000.0 if feasible else 400000.0, "memory": 200000, "latency": 0.4}
    finetune = Finetuned(3, (0.85, 0.9, 0.97, 0.95), 2, 0.97, 0.95, 0.9634).to_json()
    return Result(
        "accuracy", NetworkResult(0.9812, TEACHER | {"latency": 0.5}, 300000), NetworkResult(0.9634, usage, 120000),
        {name: ResourceName.of(name) for name in usage}, "PyTorch eager", {"macs": 381760.0}, feasible, 4, 41.0, "random", 0, 2,
        None, finetune, {}, layers(), {"torch": "2.15.0"}, COMMAND,
    )  # fmt: skip


def run_folder(folder, name="resnet8-digits", results=None, tail="", lines=None):
    run = RunFolder(folder)
    run.begin(EnvironmentSpec.of_keywords(teacher=name, evaluator={"refit": False}), SearchSpec(agent="random"), COMMAND)
    for line in lines or trials():
        run.append(line)
    with (folder / "trials.jsonl").open("a") as file:
        file.write(tail)
    if results:
        run.write("result.json", results.to_json())
    return folder


def page(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8").replace("\u00a0", " ")
    return re.sub(r"<pre>.*?</pre>", lambda found: re.sub("</?span>", "", found[0]), text)  # around --options


def headline(html):
    return re.search(r"<h1>(.*?)</h1>", html)[1]


def test_pareto_of_a_planted_set():
    front = [(1.0, 0.2), (2.0, 0.5), (4.0, 0.9)]
    beaten = [(2.0, 0.4), (3.0, 0.5), (4.0, 0.9), (5.0, 0.89), (9.0, 0.1), (0.5, float("nan"))]
    assert plots.pareto([beaten[0], front[2], *beaten[1:4], front[0], front[1], *beaten[4:]]) == [5, 6, 1]
    assert plots.pareto([]) == []


def test_pareto_front_leaves_no_trial_that_beats_it():
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 20, (200, 2)).astype(float)]
    front = [points[i] for i in plots.pareto(points)]
    for cost, accuracy in points:
        assert any(c <= cost and a >= accuracy for c, a in front)
        assert not any(cost <= c and accuracy >= a and (cost, accuracy) != (c, a) for c, a in front)


def test_no_accuracy_above_all_is_on_the_axis_of_a_fine_tuning():
    history = [{"epoch": epoch, "validation": 1.0} for epoch in (1, 2, 3)]
    ticks = re.findall(r">([\d.]+)</text>", plots.finetuning({"history": history, "best_epoch": 3}, "accuracy", 1.0))
    assert "99" in ticks and max(map(float, ticks)) == 100


def test_page_of_a_finished_run(tmp_path):
    html = page(run_folder(tmp_path, results=result()))
    assert headline(html) == "resnet8-digits at 49.8 % of its MACs: 96.3 % test accuracy, teacher 98.1 %"
    assert "96.34 %" in html and "budget met: 382K" in html and "compress-env finetune" not in html
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == ["Teacher and student", "Accuracy against MACs", "What to do next", "Layers", "Reward of the search",
                      "Fine-tuning", "Best trials", "Settings", "Versions", "Repeat this run"]  # fmt: skip
    assert html.startswith("<!DOCTYPE html>") and html.count("Pareto front") == html.count(">fine-tuned<") == 1
    assert "kept: 97.00 (epoch 2)" in html and "last: 95.00 (epoch 3)" in html
    assert f"<pre>{COMMAND.replace(chr(34), '&#34;')}</pre>" in html
    assert ">Measured with PyTorch eager.<" in html and "<dt>evaluator.refit</dt><dd>false<" in html


def test_page_says_that_the_budget_is_missed(tmp_path):
    html = page(run_folder(tmp_path, results=result(feasible=False)))
    assert "(over the budget)" in headline(html) and "over the budget of 382K" in html


def test_page_of_a_search_without_result_says_how_to_go_on(tmp_path):
    html = page(run_folder(tmp_path))
    assert f"compress-env finetune --out {tmp_path}" in html
    assert "80.0 % validation accuracy" in headline(html)  # not the better one over the budget
    assert "Teacher and student" not in html and ">fine-tuned<" not in html and "Fine-tuning</h2>" not in html


def test_best_trials_come_first_and_those_over_the_budget_last(tmp_path):
    table = page(run_folder(tmp_path)).split("<h2>Best trials</h2>")[1]
    assert re.findall(r"<tr(?: class=\"chosen\")?><td>(\d+)</td>", table) == ["2", "3", "0", "1"]


def test_a_torn_last_line_is_left_out(tmp_path):
    html = page(run_folder(tmp_path, tail='{"index": 4, "plan": {"remo'))
    assert "best of 4 trials" in headline(html)


def test_a_torn_line_in_the_middle_is_named(tmp_path):
    run_folder(tmp_path, lines=trials()[:1], tail='{"torn\n{}\n')
    with pytest.raises(UserError, match="line 2 of .*trials.jsonl"):
        write_report(tmp_path)


def test_a_trial_that_failed_is_shown_with_a_dash(tmp_path):
    html = page(run_folder(tmp_path, lines=[trial(0, -1.0, 0.0, 0.5, failed="diverged")]))
    assert "<td>0</td><td>−1.0000</td><td>–</td>" in html


def test_files_of_another_format_are_named_with_the_cure(tmp_path):
    run_folder(tmp_path, results=result())
    (tmp_path / "result.json").write_text('{"accuracy_test": 0.9}')
    with pytest.raises(UserError, match="result.json: it is a result of format 1, and this version reads 3; run compress-env fine"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text('{"format": 3, "metric": "accuracy"}')
    with pytest.raises(UserError, match=r"result.json: it is damaged \('teacher' is missing\); run compress-env finetune again"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"teacher": "resnet8-digits"}')
    with pytest.raises(UserError, match="is of a run of format 1, and this version reads 3; search again in another folder"):
        write_report(tmp_path)
    (tmp_path / "trials.jsonl").write_text('{"index": 0, "outcome": {}}\n')
    with pytest.raises(UserError, match=r"line 1 of .*trials.jsonl: it is a trial of format 1, and this version reads 2; search"):
        write_report(tmp_path)


def test_a_users_own_resource_and_metric_are_shown_as_they_call_themselves(tmp_path):
    metrics = {"metrics": {"psnr": 30.25}, "teacher_metrics": {"psnr": 31.5}}
    own = {"usage": {"energy": 1.25}, "teacher_usage": {"energy": 4.0}}
    lines = [trial(0, 0.5, 0, 1, resource="energy", **metrics, **own)]
    done = replace(
        result(), metric="psnr", teacher=NetworkResult(31.25, {"energy": 4.0}, 10), student=NetworkResult(30.5, {"energy": 1.25}, 5),
        resources={"energy": ResourceName("Energy", "mJ", True)}, budget={"energy": 2.0}, best_trial=0,
    )  # fmt: skip
    html = page(run_folder(tmp_path, results=done, lines=lines))
    assert headline(html) == "resnet8-digits at 31.2 % of its energy: 30.5 test psnr, teacher 31.2"
    assert re.search(r"<tr><th>Energy<.*budget met: 2 mJ.*</th><td>4 mJ</td><td>1.25 mJ</td><td>31.2 %</td>", html)
    assert "<tr><th>Test psnr</th><td>31.25</td><td>30.50</td><td>−0.75<" in html
    assert "Psnr against energy</h2>" in html and "<th>Energy</th><th>Fits</th>" in html and "accuracy" not in html.lower()


@pytest.mark.parametrize("make", ["nothing", "folder", "empty"])
def test_a_run_without_trials_is_refused_with_a_next_step(tmp_path, make):
    folder = tmp_path / "run"
    if make != "nothing":
        folder.mkdir()
    if make == "empty":
        run_folder(folder)
        (folder / "trials.jsonl").write_text('{"torn')
    with pytest.raises(UserError, match="(?s)run.*compress-env search"):
        write_report(folder)
    if make == "empty":
        with pytest.raises(UserError, match="has no run.json; give one of its folders that have one: run"):
            write_report(tmp_path)


def test_hostile_names_are_escaped_everywhere(tmp_path):
    finished = result()
    finished.layers[0]["name"] = HOSTILE[:20]
    lines = trials()
    lines[2] = replace(lines[2], plan=Plan.of([HOSTILE]))
    html = page(run_folder(tmp_path, name=HOSTILE, results=finished, lines=lines))
    assert "<script" not in html and html.count("&lt;script&gt;") >= 3


def test_page_refers_to_nothing_outside_and_has_no_id_twice(tmp_path):
    (run_folder(tmp_path, results=replace(result(), exports={"student.onnx": 0.0})) / "student.onnx").write_bytes(b"")
    html = page(tmp_path)
    assert not re.search(r"http|src\s*=|@import|<script|<link|<\?xml|<!DOCTYPE svg", html)
    targets = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', html)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert targets and {a or b for a, b in targets} <= {f"#{i}" for i in ids} | {"student.onnx"}


def test_page_is_the_same_when_written_again(tmp_path):
    run_folder(tmp_path, results=result())
    assert page(tmp_path) == page(tmp_path)


def test_picture_shows_a_removed_layer():
    before = picture(layers(), spent(), "step 1")
    assert before.shape == (720, 960, 3) and before.dtype == np.uint8
    assert np.array_equal(before, picture(layers(), spent(), "step 1"))
    rows = layers()
    rows[0] |= {"status": "removed", "after": 0}
    after = picture(rows, spent(), "step 1")
    assert after.shape == before.shape and not np.array_equal(before, after)


@pytest.mark.parametrize("count", [0, 60])
def test_picture_keeps_its_size(count):
    assert picture(layers() * (count // 4), {}, HOSTILE).shape == (720, 960, 3)


def test_ansi_lists_every_layer_and_resource():
    rows = [*layers(), layer("undecided.conv", 8, 8) | {"status": "undecided"}]
    lines = ansi(rows, spent(), "a title").splitlines()
    assert lines[0] == "a title" and len(lines) == 2 + len(rows) + 1
    for row, line in zip(rows, lines[2:]):
        assert line.startswith(row["name"]) and ("removed" in line) == (row["status"] == "removed")
    assert "380K MACs" in lines[-1] and "within the limit" in lines[-1]
    assert "OVER the limit" in ansi(rows, spent(400000.0), "")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(0, "", "0"), (42, "", "42"), (999.9, "", "1.00K"), (381760.0, "MACs", "382K MACs"), (9.996, "ms", "10.0 ms"),
     (1_090_000, "bytes", "1.09 MB"), (512, "bytes", "512 B"), (np.float32(2.5), "ms", "2.50 ms"), (None, "ms", "–"),
     (float("nan"), "", "–")],
)  # fmt: skip
def test_quantity(value, unit, shown):
    assert quantity(value, unit) == shown


def test_labels_units_and_metrics_read_well():
    assert [in_sentence(label) for label in ("Peak memory", "MACs", "energy", "")] == ["peak memory", "MACs", "energy", ""]
    assert [unit_beside("MACs", "MACs"), unit_beside("Parameters", "parameters"), unit_beside("Latency", "ms")] == ["", "", "ms"]
    assert [metric(v, 1) for v in (0.5, 1.0, 30.0, -0.5, None)] == ["50.0\u00a0%", "100.0\u00a0%", "30.0", "−0.5", "–"]
