"""Comparing agents: known statistics, equal evaluations, finished runs skipped, an optimum that is known."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import mannwhitneyu
from torch import nn

from compress_env.allocation.sensitivities import probes
from compress_env.bench import report as bench_report
from compress_env.bench import run as bench
from compress_env.bench.retrained import of_agent, records
from compress_env.bench.run import load
from compress_env.bench.scenarios import SCENARIOS
from compress_env.bench.statistics import hypervolume, improvement, interval, iqm, profile
from compress_env.cli.main import main
from compress_env.envs.planted import LayerRemovalPlantedEnv
from compress_env.errors import UserError
from compress_env.search.run import search
from compress_env.search.store import alone_in
from compress_env.surgery.plan import Plan


def test_statistics_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.3, 1, (3, 8)), rng.normal(0, 1, (3, 8))
    assert iqm(np.arange(8.0)) == np.mean([2, 3, 4, 5])
    expected = np.mean([mannwhitneyu(a, b).statistic / 64 for a, b in zip(x, y)])
    assert improvement(x, y) == pytest.approx(expected) == pytest.approx(1 - improvement(y, x))
    assert improvement(x, x) == 0.5
    low, high = interval(iqm, x)
    assert low < iqm(x) < high and (low, high) == interval(iqm, x)
    assert interval(iqm, np.full((2, 5), 0.7)) == (pytest.approx(0.7), pytest.approx(0.7))
    assert profile(np.array([[0.1, 0.6], [0.9, 0.4]]), np.array([0.0, 0.5, 1.0])).tolist() == [1.0, 0.5, 0.0]


def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr("compress_env.bench.statistics.REPETITIONS", 300)
    rng = np.random.default_rng(1)
    inside = [low < 0 < high for low, high in (interval(iqm, rng.normal(0, 1, (1, 20))) for _ in range(40))]
    assert 0.75 <= np.mean(inside) <= 1.0


def test_hypervolume_is_the_dominated_area():
    assert hypervolume([]) == 0
    assert hypervolume([(0.5, 0.8)]) == pytest.approx(0.4)
    assert hypervolume([(0.2, 0.5), (0.6, 1.0), (0.7, 0.9)]) == pytest.approx(0.4 * 0.5 + 0.4 * 1.0)


def test_the_planted_optimum_has_reward_1_and_is_the_only_such_plan():
    def planted(seed=0):
        return LayerRemovalPlantedEnv.make_objective(False, planted_seed=seed)

    objective = planted()
    best = objective.evaluator.planted
    assert objective.evaluator(best).metric == 1.0
    trials = search(planted(), "random", 30, progress=False).trials
    assert all((t.reward == 1.0) == (t.plan == best) for t in trials) and min(t.reward for t in trials) < 0.9
    assert all(t.feasible for t in trials)
    assert planted(1).evaluator.planted != best
    greedy = search(planted(), "greedy", 100, progress=False)
    assert greedy.best.reward > greedy.trials[0].reward + 0.1  # the uniform student comes first
    with pytest.raises(UserError, match="judges by a formula; leave evaluator out"):
        LayerRemovalPlantedEnv.make_objective(False, evaluator={"kl_weight": 0.5})


@pytest.mark.parametrize("changes", ["compress", "grow", "transform"])
def test_the_planted_plan_has_metric_1_whatever_changes(changes):
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    settings, inserted = {"teacher": nn.Sequential(*layers, nn.Linear(6, 10)).eval(), "data": "digits", "changes": changes}, 0
    for seed in range(3):
        evaluator = LayerRemovalPlantedEnv.make_objective(False, planted_seed=seed, **settings).evaluator
        assert evaluator(evaluator.planted).metric == 1.0
        assert evaluator(Plan()).metric < 1.0
        inserted += len(evaluator.planted.inserted)
    assert (inserted > 0) == (changes != "compress")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a small benchmark, and what was printed."""
    out = tmp_path_factory.mktemp("bench") / "a"
    command = ["bench", "run", "--scenario", "planted", "--agent", "random", "--agent", "uniform", "--agent", "tpe"]
    command += ["--evaluations", "6", "--seeds", "2", "--jobs", "1", "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return out, command


def test_every_combination_is_run_once_with_as_many_evaluations(results):
    out, command = results
    runs = bench.results(out / "results.jsonl").read()
    further = len(probes(bench.objective("planted", None).problem))  # instead of sensitivities, which these agents do not need
    assert further > 9 and {r.measured for r in runs} == {0} and {r.evaluations for r in runs} == {6}
    assert {(r.agent, r.seed) for r in runs} == {(a, s) for a in ("random", "uniform", "tpe") for s in (0, 1)}
    assert all(len(r.best) == len(r.metric) == len(r.seconds) == 6 + further for r in runs)
    assert all(list(r.best) == sorted(r.best) and list(r.seconds) == sorted(r.seconds) for r in runs)
    trials = search(bench.objective("planted", None), "random", 6 + further, 1, progress=False).trials
    mine = next(r for r in runs if (r.agent, r.seed) == ("random", 1))
    assert mine.best == tuple(np.maximum.accumulate([t.reward for t in trials]))
    before = (out / "results.jsonl").read_bytes()
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (out / "results.jsonl").read_bytes() == before  # finished: nothing is run again


def test_an_interval_is_given_from_three_seeds_on_beside_their_number(results, monkeypatch):
    monkeypatch.setattr("compress_env.bench.statistics.REPETITIONS", 20)
    runs = bench.results(results[0] / "results.jsonl").read()
    agents = {a: [r for r in runs if r.agent == a] for a in ("random", "uniform")}
    three = {a: [*own, replace(own[0], seed=2)] for a, own in agents.items()}
    for number, own in (("2", agents), ("3", three)):
        every = bench_report.rows(own) + bench_report.overall({"planted": own})
        assert len(every) == 4 and {row[1] for row in every} == {number}
        intervals = sum("[" in cell for row in every for cell in row)
        assert intervals == (0 if number == "2" else 6)  # of both agents and of the chance, in both tables


def test_an_agent_may_have_settings(tmp_path):
    own = "evolution population=2"
    runs = bench.run(["planted"], ["evolution", own], [0], 12, tmp_path, jobs=1)
    assert [r.agent for r in runs] == ["evolution", own] and runs[0].best != runs[1].best
    assert bench.with_options("ddpg model_episodes=0 'start=a b' shaping=false") == (
        "ddpg", {"model_episodes": 0, "start": "a b"}, {"shaping": False}
    )  # fmt: skip
    with pytest.raises(UserError, match="no_such"):
        bench.run(["planted"], ["evolution no_such=1"], [0], 12, tmp_path, jobs=1)


def test_a_folder_in_which_a_benchmark_runs_is_refused(results, tmp_path):
    _, command = results
    with alone_in(tmp_path):
        done = CliRunner().invoke(main, [*command[:-1], str(tmp_path)])
    assert done.exit_code == 2 and "another process is working in" in done.output
    assert not (tmp_path / "results.jsonl").exists()


def test_a_torn_result_is_run_again_and_gives_the_same(results, tmp_path):
    out, _ = results
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    torn = json.loads(lines[-1])
    again = bench.run(["planted"], ["random", "uniform", "tpe"], [0, 1], 6, tmp_path, jobs=1)
    assert len(again) == 6 and len(bench.results(tmp_path / "results.jsonl").read()) == 6
    mine = next(r for r in again if (r.agent, r.seed) == (torn["agent"], torn["seed"]))
    assert list(mine.best) == torn["best"] and mine.plan == torn["plan"]


def test_the_report_has_a_row_an_agent_a_picture_and_one_page(results):
    out, _ = results
    done = CliRunner().invoke(main, ["bench", "report", "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = (out / "report.md").read_text()
    assert all(f"| {agent} | 2 | 0." in text for agent in ("random", "uniform", "tpe")) and "6 evaluations, 2 seeds" in text
    assert (out / "planted.png").stat().st_size > 10_000
    duels = text[text.index("who beats whom") :].splitlines()
    order = [cell.strip() for cell in duels[2].split("|")[2:-1]]
    chance = {
        (row.split("|")[1].strip(), c): x.strip() for row in duels[4:7] for c, x in zip(order, row.split("|")[2:-1])
    }
    for a, b in chance:
        assert (
            chance[a, b] == "-" if a == b else float(chance[a, b]) + float(chance[b, a]) == pytest.approx(1, abs=0.011)
        )
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    assert load(out / "results.jsonl")["planted"]["tpe"][0].seed == 0


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    command = ["-m", "compress_env.cli", "bench", "run", "--scenario", "digits-25", "--agent", "random", "--seeds", "1"]
    command += ["--evaluations", "100000", "--jobs", "1", "--out", str(tmp_path)]
    running = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    trials = tmp_path / "runs" / "digits-25" / "random" / "0" / "trials.jsonl"
    _wait(lambda: trials.exists() and trials.stat().st_size > 0)
    running.kill()
    running.wait()
    sizes = [-1]

    def still() -> bool:
        sizes.append(trials.stat().st_size)
        return sizes[-1] == sizes[-2]

    _wait(still, every=2.0)


def _wait(condition, seconds: float = 120, every: float = 0.2) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(every)


def test_committed_results_are_read():
    folder = Path(__file__).parent.parent / "benchmarks"
    for file in (*(folder / name / "results.jsonl" for name in ("agents", "ablations")), *(folder / "stock").glob("*.jsonl")):
        table = load(file)
        for scenario, agents in table.items():
            assert SCENARIOS.get(scenario).about and all(len(r.metric) >= r.evaluations for runs in agents.values() for r in runs)
    distilled = records(folder / "agents" / "results.jsonl").read()
    agents = load(folder / "agents" / "results.jsonl")["digits-25"]
    found = {(r.scenario, r.plan, r.seed): r for r in distilled}
    assert len(distilled) == 15 and of_agent(agents["ddpg"], found)


def test_scenarios_are_listed_as_a_table_and_as_json():
    listed = CliRunner().invoke(main, ["bench", "run", "--list"]).output
    assert [line.split()[0] for line in listed.splitlines()] == SCENARIOS.names()
    found = json.loads(CliRunner().invoke(main, ["bench", "run", "--list", "--json"]).output)
    assert found == {name: scenario.about for name, scenario in SCENARIOS.items()}
    assert "--json goes with --list" in CliRunner().invoke(main, ["bench", "run", "--json", "--out", "a"]).output
    for command in ("run", "policy"):
        assert "Missing option '--out'" in CliRunner().invoke(main, ["bench", command]).output


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    out, _ = results
    with pytest.raises(UserError, match="has 6 evaluations already; give at least as many as 6"):
        bench.run(["planted"], ["random"], [0], 5, out)
    with pytest.raises(UserError, match="no scenario 'plantd'; did you mean 'planted'"):
        bench.run(["plantd"], ["random"], [0], 7, tmp_path)
    with pytest.raises(UserError, match="no agent 'randm'"):
        bench.run(["planted"], ["randm"], [0], 7, tmp_path)
    with pytest.raises(UserError, match="there are no results in"):
        load(tmp_path / "results.jsonl")
