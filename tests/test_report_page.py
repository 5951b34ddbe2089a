"""The page of a run: why layers were kept or cut, what to do next by the state of the run, and that nothing is cut off on a phone."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from click.testing import CliRunner
from test_report import COMMAND, page, result, run_folder, trial, trials

from compress_env.cli.main import main
from compress_env.distill.finetune import Finetuned
from compress_env.report.next_steps import Next
from compress_env.report.parts import PARTS, Parts
from compress_env.search.promise import Attempt, Promise
from compress_env.search.result import NetworkResult
from compress_env.search.store import RunFolder
from compress_env.search.trial import best_trial
from compress_env.surgery.plan import Plan
from compress_env.tasks.paired import Drop

SENSITIVITIES = {
    "blocks": {"stages.0.0": 0.4321, "stages.1.0": 1.5}, "evaluations": 9, "seconds": 1.0,
    "groups": {"conv1": [[9, 0.125]], "stages.0.0.conv1": [[8, 0.07]], "stages.1.0.conv1": [[8, 0.25]]},
}  # fmt: skip
ROWS = (
    ("conv1", "group", 0, [16, 9], 0.1), ("stages.0.0", "branch", 0, None, 0.386), ("stages.0.0.conv1", "group", 1, [16, 8], 0.193),
    ("stages.1.0", "branch", 0, None, 0.2), ("stages.1.0.conv1", "group", 1, [16, 8], 0.3), ("fc", "stays", 0, None, None),
)  # fmt: skip


def explained(folder, *names, **given):
    """A run folder whose best plan removes stages.0.0 and narrows conv1 to 9, with the files of these names."""
    run_folder(folder, **given)
    rows = [{"name": n, "kind": k, "depth": d, "layers": 1, "channels": c, "shares": {} if s is None else {"macs": s}}
            for n, k, d, c, s in ROWS]  # fmt: skip
    orders = {name: list(range(16)) for name in SENSITIVITIES["groups"]}
    files = {
        PARTS: {"rows": rows, "stays": {"fc": "its channels are the outputs"}}, "sensitivities.json": SENSITIVITIES,
        "problem.json": {"ranking": {"name": "magnitude", "orders": orders}, "input_shape": [1, 8, 8]},
    }  # fmt: skip
    for name in names:
        (folder / name).write_text(json.dumps(files[name]))
    return folder


def decisions(html):
    """The rows of the table: name, decision, then the other cells as text."""
    table = re.search(r'<table class="why">(.*?)</table>', html, re.S)[1]
    rows = re.findall(r"<tr class=\"(\w+)\">(.*?)</tr>", table, re.S)
    cells = [(status, re.sub(r"<svg.*?</svg>", "", row, flags=re.S)) for status, row in rows]
    return [
        (re.search(r"<th[^>]*>(.*?)<span", row)[1], status, re.search(r"under\">(.*?)</span>", row)[1],
         *(cell.strip().replace("&nbsp;", " ") for cell in re.findall(r"<td>(.*?)</td>", row, re.S)))
        for status, row in cells
    ]  # fmt: skip


def test_sensitivities_and_savings_stand_beside_each_decision(tmp_path):
    html = page(explained(tmp_path, PARTS, "sensitivities.json"))
    assert decisions(html) == [
        ("conv1", "narrowed", "16 → 9 channels", "0.125", "10.0 %", "0.125"),
        ("stages.0.0", "removed", "removed", "0.432", "38.6 %", "0.432"),  # and its own group has vanished with it
        ("stages.1.0", "kept", "kept", "1.500", "20.0 %", ""),
        ("stages.1.0.conv1", "kept", "all 16 channels", "0.250", "30.0 %", ""),
        ("fc", "stays", "stays: its channels are the outputs", "", "", ""),
    ]
    bars = re.findall(r'<rect width="([\d.]+)" height="7"/></svg>', html)
    assert bars == ["8.3", "25.9", "8.3", "28.8", "100.0", "28.8", "100.0", "51.8", "16.7", "77.7"]  # of the largest KL or share
    assert "these cuts cost 0.557 nats in sum; the student with all of them has 0.100 before" in html


def test_older_runs_and_agents_without_sensitivities_show_what_there_is(tmp_path):
    old = decisions(page(explained(tmp_path / "old", "sensitivities.json", "problem.json")))
    assert [row[:2] for row in old] == [
        ("conv1", "narrowed"), ("stages.0.0", "removed"), ("stages.1.0", "kept"), ("stages.1.0.conv1", "kept")
    ]  # fmt: skip
    assert [row[3:] for row in old] == [("0.125", "0.125"), ("0.432", "0.432"), ("1.500", ""), ("0.250", "")]
    without = page(explained(tmp_path / "without", PARTS))
    assert "This agent measures no sensitivities" in without and decisions(without)[1][2:] == ("removed", "38.6 %")
    assert "Why each layer" not in page(explained(tmp_path / "neither"))


def test_savings_are_those_of_the_students_that_are_built(digits_env):
    problem = digits_env.objective.problem
    found = Parts.of(problem)
    assert {row.name for row in found.rows if row.kind != "stays"} == {d.target for d in problem.decisions}
    for row in found.rows:
        if row.kind == "stays":
            continue
        group = problem.graph.groups.get(row.name)
        plan = Plan.of((), {row.name: group.size // 2}) if row.kind == "group" else Plan.of([row.name])
        whole, used = problem.cost_model.teacher["macs"], problem.built(plan).usage["macs"]
        assert row.shares["macs"] == pytest.approx(1 - used / whole) and row.channels == (group and (group.size, group.size // 2))
    assert Parts.from_json(json.loads(json.dumps(found.to_json()))) == found


def steps(folder):
    """Titles and commands of what to do next."""
    run = RunFolder(folder)
    trials, outcome = run.trials(), run.result()
    best = next(t for t in trials if t.index == 2) if outcome else best_trial(trials) or trials[0]
    found = Next(folder, run.recorded(), trials, best, outcome, False).steps()
    return {step.title: step.command.replace(str(folder), "RUN") for step in found}


def finished(student, epochs=10, best=3, exports=("student.onnx",), feasible=True):
    done = Finetuned(epochs, (0.85, *[0.9] * epochs), best, 0.9, 0.9, student)
    network = NetworkResult(student, dict(result().student.usage), 120000)
    return replace(
        result(feasible), student=network, finetune=done.to_json(), best_trial=2, exports=dict.fromkeys(exports, 0.0)
    )


FINETUNE, SEARCH = "compress-env finetune --out RUN", "compress-env search --config RUN/run.json"
STATES = {
    "interrupted": (None, {}, {"Go on with the search": f"{SEARCH} --evaluations 150 --out RUN --resume",
                               "Fine-tune and test the best student found": f"{FINETUNE} --epochs 30"}),
    "complete": (None, {"evaluations": 4}, {"Fine-tune and test the best student found": f"{FINETUNE} --epochs 30"}),
    "late": (None, {"evaluations": 3, "lines": 3},
             {"Fine-tune and test the best student found": f"{FINETUNE} --epochs 30",
              "Or search further first": f"{SEARCH} --evaluations 6 --out RUN --resume"}),
    "nothing fits": (None, {"evaluations": 2, "share": 0.6}, {"Search further": f"{SEARCH} --evaluations 4 --out RUN --resume",
                     "Or allow a larger budget": f"{SEARCH} --budget macs=62.5% --out RUN-62.5"}),
    "good": (finished(0.98), {}, {"Deploy it": "import onnxruntime; session = onnxruntime.InferenceSession('RUN/student.onnx')",
                                  "Try a smaller budget": f"{SEARCH} --budget macs=40% --out RUN-40"}),
    "not exported": (finished(0.98, exports=()), {}, {"Deploy it": "compress-env export --out RUN",
                     "Try a smaller budget": f"{SEARCH} --budget macs=40% --out RUN-40"}),
    "rising": (finished(0.90, best=9), {}, {"Fine-tune longer": f"{FINETUNE} --epochs 20",
               "Allow a larger budget": f"{SEARCH} --budget macs=62.5% --out RUN-62.5",
               "Deploy it": "import onnxruntime; session = onnxruntime.InferenceSession('RUN/student.onnx')"}),
    "over the budget": (finished(0.98, feasible=False), {},
                        {"Search within a smaller limit": f"{SEARCH} --budget macs=47.5% --out RUN-47.5"}),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_what_to_do_next_follows_from_the_state_of_the_run(state, tmp_path):
    outcome, more, expected = STATES[state]
    lines = trials()[: more.get("lines", 4)]
    if share := more.get("share"):
        lines = [trial(0, 0.5, 0.5, share), trial(1, 0.6, 0.6, share)]
    run_folder(tmp_path, results=outcome, lines=lines)
    run = RunFolder(tmp_path).recorded()
    run["search"]["evaluations"] = more.get("evaluations", 150)
    RunFolder(tmp_path).write("run.json", run)
    (tmp_path / "student.onnx").write_bytes(b"")
    assert steps(tmp_path) == expected


def gone_on_with(folder, lines, evaluations):
    """A run of four evaluations that was finished, and gone on with to these trials of so many."""
    run = RunFolder(run_folder(folder, results=finished(0.98), lines=lines))
    recorded = run.recorded()
    recorded["search"]["evaluations"] = 4
    run.write("run.json", recorded)
    run.begun(evaluations)
    return page(folder)


def test_a_result_that_leaves_out_later_trials_is_shown_as_one(tmp_path):
    later = [*trials(), trial(4, 0.9, 0.9, 0.4), trial(5, 0.6, 0.78, 0.2)]
    html = gone_on_with(tmp_path / "a", later, 100)
    said = "This result is of the first 4 of 6 trials; go on with --resume, or with compress-env finetune."
    assert html.index("</h1>") < html.index(said) < html.index("Teacher and student")
    commands = re.findall(r'<li class="step">.*?<pre>(.*?)</pre>', html, re.S)
    assert commands[0] == f"{SEARCH} --evaluations 100 --out RUN --resume".replace("RUN", str(tmp_path / "a"))
    assert commands[1] == f"{FINETUNE} --epochs 10".replace("RUN", str(tmp_path / "a"))
    assert "It ended after 6 of 100 evaluations" in html and "best of the first 4; this looks at all 6" in html
    assert html.index("Fine-tune and test the best of all") < html.index("Deploy it")
    assert "It was begun with 4 evaluations, and gone on with to 100 by --resume." in html.split("Repeat this run")[1]
    over = gone_on_with(tmp_path / "b", later, 6)
    assert said in over and "Go on with the search" not in over and "Fine-tune and test the best of all" in over
    same = gone_on_with(tmp_path / "c", trials(), 4)
    assert "This result is of the first" not in same and "gone on with to" not in same and "best of all trials" not in same


@pytest.mark.parametrize("there", [True, False])
def test_the_report_of_an_earlier_result_is_written_again_when_going_on_is_interrupted(there, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        RunFolder(tmp_path).append(trial(4, 0.9, 0.9, 0.4))
        raise KeyboardInterrupt

    assert "of the first" not in gone_on_with(tmp_path, trials(), 4)
    if not there:
        (tmp_path / "report.html").unlink()
    monkeypatch.setattr("compress_env.api.run_search", interrupted)
    done = CliRunner().invoke(main, ["search", "--evaluations", "9", "--resume", "--quiet", "--out", str(tmp_path)])
    assert done.exit_code == 130 and (tmp_path / "report.html").is_file() == there
    assert not there or "This result is of the first 4 of 5 trials" in (tmp_path / "report.html").read_text()


def test_what_to_do_next_with_a_search_that_was_gone_on_with_counts_what_is_asked_for_now(tmp_path):
    run = RunFolder(run_folder(tmp_path))
    run.begun(200)
    assert "It ended after 4 of 200 evaluations." in page(tmp_path) and "--evaluations 200 --out" in page(tmp_path)


def test_a_smaller_budget_is_that_of_the_cheapest_trial_that_is_as_good(tmp_path):
    lines = [*trials(), trial(4, 0.6, 0.795, 0.31), trial(5, 0.6, 0.78, 0.2)]
    run_folder(tmp_path, results=replace(finished(0.98), evaluations=6), lines=lines)
    assert steps(tmp_path)["Try a smaller budget"] == f"{SEARCH} --budget macs=31% --out RUN-31"
    html = page(tmp_path)
    assert "Trial 4 does as well in the search at 31 % of the MACs" in html and html.count('<li class="step">') == 2
    assert f"<pre>{SEARCH.replace('RUN', str(tmp_path))} --budget macs=31% --out {tmp_path}-31</pre>" in html


def test_commands_of_code_of_ones_own_ask_for_trust_and_those_of_objects_are_python(tmp_path):
    run_folder(tmp_path, name="net.py:Net")
    assert set(steps(tmp_path).values()) == {
        f"{FINETUNE} --epochs 30 --trust", f"{SEARCH} --trust --evaluations 150 --out RUN --resume"
    }  # fmt: skip
    run = RunFolder(tmp_path).recorded()
    run["environment"]["problem"]["teacher"] = {"python object": "Net"}
    RunFolder(tmp_path).write("run.json", run)
    assert steps(tmp_path)["Go on with the search"].startswith(
        "compress_env.compress(..., evaluations=150, out='RUN', resume=True)"
    )


def test_a_guaranteed_accuracy_that_is_not_there_yet_is_gone_on_with_as_it_was_typed(tmp_path):
    run = RunFolder(run_folder(tmp_path))
    (found,) = Next(tmp_path, run.recorded(), run.trials(), run.trials()[0], None, True).steps()
    assert found.command == f"{COMMAND} --resume" and found.why == "It ended after 4 of 150 evaluations, before a student held."


def test_nothing_is_cut_off_at_390_pixels(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    long = "features.denseblock4.denselayer16.conv2_of_a_very_long_name_without_any_place_to_break"
    lines = [replace(t, plan=Plan.of([long, "stages.0.0"], {"conv1": 9})) for t in trials()]
    tried = Attempt(0.5, 0.1, 1.0, 2, 0.498, Drop(-10.25, 12.79, 0.95, 125, 0.923, 0.912, "score"), holds=True)
    promise = Promise(0.5, "macs", 0.498, tried.drop, False, (tried, tried))
    folders = [
        explained(tmp_path / "a", PARTS, "sensitivities.json", results=replace(finished(0.90, best=9), promise=promise)),
        explained(tmp_path / "b", "sensitivities.json", lines=lines, name=f"{long}.py:Net"),
    ]
    frames = "".join(f'<iframe src="{p.name}/report.html" style="width: 390px; height: 900px"></iframe>' for p in folders)
    script = (
        "onload = () => { document.title = [...document.querySelectorAll('iframe')].map(f => f.contentDocument.documentElement)"
        ".map(d => d.scrollWidth - d.clientWidth + ' of ' + (d.clientWidth > 300)).join(); }"
    )
    for folder in folders:
        page(folder)
    (tmp_path / "all.html").write_text(f"<body>{frames}<script>{script}</script></body>")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'all.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "<title>0 of true,0 of true</title>" in done.stdout, (done.stdout[:300], done.stderr[-300:])


def test_the_page_prints_in_colour_and_whole(tmp_path):
    css = re.search(r"<style>(.*?)</style>", page(run_folder(tmp_path)), re.S)[1]
    assert "print-color-adjust: exact" in css and "@page" in css and "table-header-group" in css
    assert "overflow" not in re.sub(r"overflow-wrap: \w+", "", css)  # nothing scrolls within the page, so nothing is cut on paper
