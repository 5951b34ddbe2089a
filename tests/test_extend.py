"""A search and a benchmark that go on with more evaluations than they were begun with."""

from __future__ import annotations

import json
import shlex
import warnings
from concurrent.futures import Future
from dataclasses import replace

import gymnasium as gym
import pytest
from click.testing import CliRunner
from test_report import result

from compress_env.agents.sb3 import off_policy
from compress_env.api import run_search
from compress_env.bench import run as bench
from compress_env.cli.main import main
from compress_env.errors import UserError
from compress_env.report.runs import state_of
from compress_env.search import search
from compress_env.search.agent import DrivingAgent
from compress_env.search.recorder import Recorder
from compress_env.search.run import AGENTS
from compress_env.search.store import ASKED, RunFolder
from compress_env.spec import EnvironmentSpec, SearchSpec

ALIKE = ("random", "uniform", "stages", "greedy", "evolution", "cma-es", "model", "allocation")
"""Agents whose course does not depend on how many evaluations there are to be."""
SCHEDULED = ("tpe", "reinforce", "dyna-ddpg", "ppo")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Checkpoints after every episode, and no policies as files, which take seconds."""
    monkeypatch.setattr(off_policy, "SAVE_AFTER", 0.0)
    monkeypatch.setattr("compress_env.search.run._save_policy", lambda *_: None)


class Inline:
    """Runs in this process what a benchmark gives to workers, which take seconds to start."""

    def __init__(self, *_, **__):
        self.shutdown = lambda **_: None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def inline(make_planted, monkeypatch):
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(bench, "objective", lambda *_: make_planted())


@pytest.mark.parametrize("name", [*ALIKE, *SCHEDULED])
def test_a_search_goes_on_with_more_evaluations_and_keeps_its_trials(name, make_planted, tmp_path):
    first = search(make_planted(), name, 5, 1, tmp_path, False).trials
    further = search(make_planted(), name, 8, 1, tmp_path, False).trials
    assert all(a.same(b) for a, b in zip(first, further))
    if name in ALIKE:
        whole = search(make_planted(), name, 8, 1, None, False).trials
        assert len(whole) == len(further) and all(a.same(b) for a, b in zip(whole, further))
    else:
        assert len(further) == 8
    again = search(make_planted(), name, 6, 1, tmp_path, False).trials  # fewer than there are: nothing is lost
    assert len(again) == len(further) and len(RunFolder(tmp_path).trials()) == len(further)


def test_a_search_that_is_interrupted_while_it_goes_on_comes_to_the_same(make_planted, tmp_path):
    for folder, stops in ((tmp_path / "whole", (5, 9)), (tmp_path / "parts", (5, 7, 9))):
        for evaluations in stops:
            found = search(make_planted(), "ddpg", evaluations, 1, folder, False)
    whole = RunFolder(tmp_path / "whole").trials()
    assert len(whole) == len(found.trials) == 9 and all(a.same(b) for a, b in zip(whole, found.trials))


class Rigid(DrivingAgent):
    """Ends by itself, and cannot be told otherwise."""

    def __init__(self, objective, evaluations, seed):
        self.evaluations = evaluations

    def drive(self, env: gym.Env, checkpoint) -> None:
        for _ in range(self.evaluations):
            env.reset(seed=0)
            done = False
            while not done:
                _, _, done, _, _ = env.step(env.action_space.sample() * 0)

    def policy(self):
        return None


def test_an_agent_that_cannot_go_on_says_so(make_planted, tmp_path):
    assert len(search(make_planted(), Rigid, 3, 0, tmp_path, False).trials) == 3
    with pytest.raises(UserError, match=r"the agent 'Rigid' ends after as many evaluations as .* go_on\(evaluations\)"):
        search(make_planted(), Rigid, 5, 0, tmp_path, False)


def test_every_agent_that_drives_an_environment_can_go_on(make_planted):
    from compress_env.registry import load_attribute
    from compress_env.search.agent import Agent, Extendable

    objective = make_planted()
    for name in set(AGENTS) - {"policy"}:
        made = load_attribute(AGENTS[name], "agent")(objective, 20, 0)
        assert isinstance(made, Agent) or isinstance(made, Extendable), name


def test_a_run_goes_on_with_more_evaluations_and_another_time_limit_but_no_other_setting(tmp_path):
    quick = {"budget": {"macs": 0.5}, "evaluator": {"calibration_images": 64, "validation_images": 100}}
    spec = EnvironmentSpec.of_keywords(**quick)
    folder, _ = run_search(spec, SearchSpec("random", {}, 3, 0), tmp_path, progress=False)
    first = folder.trials()
    longer = EnvironmentSpec.of_keywords(**quick, timeout=99)
    run_search(longer, SearchSpec("random", {}, 5, 0), tmp_path, resume=True, progress=False)
    assert len(folder.trials()) == 5 and all(a.same(b) for a, b in zip(first, folder.trials()))
    with pytest.raises(UserError, match="begun with seed=0, not 1"):
        run_search(longer, SearchSpec("random", {}, 5, 1), tmp_path, resume=True, progress=False)


def stopped(number, monkeypatch):
    """Has searches end with Ctrl-C when they come to this trial."""
    record = Recorder.record

    def interrupt(self, given):
        if self.played == number:
            raise KeyboardInterrupt
        return record(self, given)

    monkeypatch.setattr(Recorder, "record", interrupt)


@pytest.mark.parametrize("settings", [True, False])
def test_a_finished_run_that_is_gone_on_with_and_interrupted_is_not_finished(settings, make_planted, tmp_path, monkeypatch):
    folder, objective = RunFolder(tmp_path), make_planted()

    def shown(evaluations: int) -> tuple:
        if settings:
            folder.begin(objective.spec, SearchSpec("random", evaluations=evaluations))
        if not search(objective, "random", evaluations, 0, folder, False).interrupted:
            folder.write("search.json", {"final_policy": None})
        return told()

    def told() -> tuple:
        state = state_of(tmp_path)
        return state.done, state.asked, state.state

    assert shown(4) == (4, 4, "complete") and not (tmp_path / ASKED).exists()
    folder.write("result.json", result().to_json())
    assert told() == (4, 4, "finished")
    with monkeypatch.context() as patch:
        stopped(6, patch)
        assert shown(9) == (6, 9, "interrupted")
    assert folder.begun(9) == 4 and folder.asked() == 9
    (tmp_path / ASKED).rename(tmp_path / "kept")
    assert told() == (6, 4, "complete")  # as folders are that were gone on with before that was noted
    (tmp_path / "kept").rename(tmp_path / ASKED)
    assert shown(9) == (9, 9, "complete")
    folder.write("result.json", replace(result(), evaluations=9).to_json())
    assert told() == (9, 9, "finished")
    (tmp_path / ASKED).write_text('{"evaluations": "many"}')
    assert told()[2] == "damaged" and ASKED in state_of(tmp_path).reason


def test_a_search_that_ends_by_itself_is_over_with_fewer_evaluations_than_it_may_have(make_planted, tmp_path):
    for evaluations in (4, 9):
        assert len(search(make_planted(), "uniform", evaluations, 0, tmp_path, False).trials) == 1
        RunFolder(tmp_path).write("search.json", {"final_policy": None})
        state = state_of(tmp_path)
        assert (state.done, state.asked, state.state) == (1, evaluations, "complete")


def test_a_run_without_trials_such_as_one_from_a_hub_is_finished_by_its_result(make_planted, tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(make_planted().spec, SearchSpec("random", evaluations=4))
    folder.write("result.json", result().to_json())
    assert state_of(tmp_path).state == "finished"


def test_a_benchmark_goes_on_with_more_evaluations_seeds_and_agents(inline, tmp_path):
    small = bench.run(["planted"], ["random", "greedy"], [0], 4, tmp_path, jobs=1)
    assert {(r.agent, r.seed, r.evaluations) for r in small} == {("random", 0, 4), ("greedy", 0, 4)}
    file, trials = tmp_path / "results.jsonl", tmp_path / "runs" / "planted" / "random" / "0" / "trials.jsonl"
    before = file.read_text(), trials.read_text()
    more = bench.run(["planted"], ["random", "greedy", "uniform"], [0, 1], 6, tmp_path, jobs=1)
    assert file.read_text().startswith(before[0]) and trials.read_text().startswith(before[1])  # what is recorded stays
    assert len(more) == 2 + 6
    table = bench.load(file)["planted"]
    assert {agent: [(r.seed, r.evaluations) for r in runs] for agent, runs in table.items()} == dict.fromkeys(
        ("random", "greedy", "uniform"), [(0, 6), (1, 6)]
    )
    whole = bench.run(["planted"], ["random"], [0], 6, tmp_path / "whole", jobs=1)
    assert whole[0].best == table["random"][0].best
    assert len(bench.run(["planted"], ["random"], [0], 4, tmp_path, jobs=1)) == len(more)  # there already


def test_a_benchmark_that_was_interrupted_amid_going_on_reports_what_all_have(inline, tmp_path):
    bench.run(["planted"], ["random", "greedy"], [0], 4, tmp_path, jobs=1)
    bench.run(["planted"], ["random"], [0], 6, tmp_path, jobs=1)
    table = bench.load(tmp_path / "results.jsonl")["planted"]
    assert {agent: [r.evaluations for r in runs] for agent, runs in table.items()} == {"random": [4], "greedy": [4]}
    with pytest.raises(UserError, match="seed 0 of random in planted has 6 evaluations already; give at least as many"):
        line = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
        (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
        bench.run(["planted"], ["random"], [0], 4, tmp_path, jobs=1)


def test_a_report_of_agents_with_nothing_in_common_says_what_each_has_and_what_to_run(inline, tmp_path):
    out = tmp_path / "a b"
    bench.run(["planted"], ["random"], [0, 1], 4, out, jobs=1)
    bench.run(["planted"], ["random"], [0], 5, out, jobs=1)
    bench.run(["planted"], ["uniform"], [0], 6, out, jobs=1)
    done = CliRunner().invoke(main, ["bench", "report", "--out", str(out)])
    assert done.exit_code == 2 and not (out / "report.html").exists()
    assert "random has 4 evaluations with seeds 0, 1 and 5 evaluations with seed 0; uniform has 6 evaluations" in done.stderr
    command = shlex.split(done.stderr[done.stderr.index("compress-env bench run") :])
    assert command[3:] == [
        "--scenario", "planted", "--agent", "random", "--agent", "uniform", "--evaluations", "6", "--seeds", "2", "--out", str(out)
    ]  # fmt: skip
    assert CliRunner().invoke(main, [*command[1:], "--quiet"]).exit_code == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = bench.load(out / "results.jsonl")["planted"]
    assert {agent: [(r.seed, r.evaluations) for r in runs] for agent, runs in table.items()} == dict.fromkeys(
        ("random", "uniform"), [(0, 6), (1, 6)]
    )


def test_a_scenario_that_cannot_be_compared_is_left_out_with_a_warning(inline, tmp_path):
    runs = bench.run(["planted"], ["random", "uniform"], [0], 4, tmp_path, jobs=1)
    for run in list(runs):
        bench.results(tmp_path / "results.jsonl").append(replace(run, scenario="digits-25", seed=len(run.agent)))
    with pytest.warns(bench.NotComparable, match="left out: the agents of digits-25 .*uniform has 4 evaluations with seed 7"):
        assert list(bench.load(tmp_path / "results.jsonl")) == ["planted"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(main, ["bench", "report", "--out", str(tmp_path), "--json"])
    assert json.loads(done.stdout).keys() == {"planted"} and done.stderr.count("Warning: left out: the agents of digits-25") == 1
