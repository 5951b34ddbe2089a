"""A search and a benchmark that go on with more evaluations than they were begun with."""

from __future__ import annotations

import json
from concurrent.futures import Future

import gymnasium as gym
import pytest

from compress_env.agents.sb3 import off_policy
from compress_env.api import run_search
from compress_env.bench import run as bench
from compress_env.errors import UserError
from compress_env.search import search
from compress_env.search.agent import DrivingAgent
from compress_env.search.run import AGENTS
from compress_env.search.store import RunFolder
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
