"""Long searches: checkpoints that hold no more than they need, kills, full disks, and the table of runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium.spaces import Box
from stable_baselines3.common.buffers import ReplayBuffer

from compress_env.agents.sb3 import off_policy
from compress_env.agents.sb3.replay import packed, unpack
from compress_env.cli.main import main
from compress_env.envs.planted import PlantedEvaluator
from compress_env.errors import UserError
from compress_env.files import read_json, write_json
from compress_env.objective import Objective
from compress_env.report.runs import state_of
from compress_env.search import asked
from compress_env.search.recorder import Recorder
from compress_env.search.run import search
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import best_trial
from compress_env.spec import SearchSpec
from compress_env.testing.agent import planted


def buffer(size: int, filled: int = 0) -> ReplayBuffer:
    """A replay buffer with episodes of three steps in it."""
    found = ReplayBuffer(size, Box(-1, 1, (4,)), Box(-1, 1, (2,)), device="cpu")
    rng = np.random.default_rng(0)
    after = rng.random((1, 4), np.float32)
    for i in range(filled):
        before, after = after, rng.random((1, 4), np.float32)
        done = i % 3 == 2
        found.add(before, after, rng.random((1, 2), np.float32), rng.random(1), np.array([done]), [{}])
        if done:
            after = rng.random((1, 4), np.float32)
    return found


@pytest.mark.parametrize("filled", [0, 1, 6, 19, 20, 23])
def test_a_replay_buffer_is_kept_whole_and_without_what_is_empty_or_twice(filled):
    before, after = buffer(20, filled), buffer(20)
    state = packed(before)
    unpack(after, state)
    for name, value in vars(before).items():
        assert np.array_equal(value, vars(after)[name]) if isinstance(value, np.ndarray) else value == vars(after)[name], name
    assert all(len(rows) == min(filled, 20) for rows in state["rows"].values())
    places, other = state["other"]
    assert len(places) == len(other) <= 9
    if filled == 6:
        assert places.tolist() == [2, 5]
    with pytest.raises(ValueError, match="broadcast"):
        unpack(buffer(2), packed(buffer(20, 20)))


def test_checkpoints_take_a_small_share_of_the_time(monkeypatch):
    now, saved = [0.0], []

    def save(*_):
        now[0] += 0.1
        saved.append(now[0])

    class Agent:
        selection = None

        class env:
            get_wrapper_attr = staticmethod(lambda _: 1)

    monkeypatch.setattr(off_policy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(off_policy.checkpoints, "save", save)
    between = off_policy._BetweenEpisodes(Agent(), "agent.checkpoint")
    for _ in range(1000):
        now[0] += 0.1
        between._on_rollout_start()
    assert saved[0] < 1 and len(saved) == 5  # 20 seconds after one that took 0.1


@pytest.mark.parametrize("name", ["model", "tpe"])
def test_a_search_goes_on_from_the_agents_state_without_asking_again(name, tmp_path, monkeypatch):
    first = planted()

    def judged() -> Objective:
        evaluator = PlantedEvaluator(first.problem, first.evaluator.planted, np.random.default_rng(0))
        return Objective(first.spec, problem=first.problem, evaluator=evaluator, sensitivities=first.sensitivities)

    monkeypatch.setattr(asked, "SAVE_AFTER", 0.0)
    whole = search(judged(), name, 24, progress=False).trials
    record, proposals = Recorder.record, []

    def interrupt(self, given):
        trial = record(self, given)
        if self.played == 15:
            raise KeyboardInterrupt
        return trial

    monkeypatch.setattr(Recorder, "record", interrupt)
    assert search(judged(), name, 24, out=tmp_path, progress=False).interrupted
    monkeypatch.setattr(Recorder, "record", record)
    limits_of = Recorder.limits_of
    monkeypatch.setattr(Recorder, "limits_of", lambda self, given: proposals.append(given) or limits_of(self, given))
    resumed = search(judged(), name, 24, out=tmp_path, progress=False).trials
    assert len(proposals) == 24 - 14  # the state is that before the last trial was told
    assert len(resumed) == 24 and all(a.same(b) for a, b in zip(resumed, whole))
    proposals.clear()
    search(judged(), name, 24, out=tmp_path, progress=False)
    assert not proposals
    state = read_json(tmp_path / "agent.json")
    write_json(tmp_path / "agent.json", state | {"agent": {}})
    with pytest.raises(UserError, match=r"agent.json is damaged \(KeyError: .*delete it"):
        search(judged(), name, 24, out=tmp_path, progress=False)
    write_json(tmp_path / "agent.json", state | {"last": "of another search"})
    assert all(a.same(b) for a, b in zip(search(judged(), name, 24, out=tmp_path, progress=False).trials, whole))
    assert len(proposals) == 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four evaluations, as `compress-env search` leaves it."""
    place = tmp_path_factory.mktemp("runs") / "deep" / "a"
    objective, folder = planted(), RunFolder(place)
    folder.begin(objective.spec, SearchSpec("random", evaluations=4))
    search(objective, "random", 4, 0, folder, progress=False)
    return place


def listed(folder: Path, *options: str) -> str:
    found = CliRunner().invoke(main, ["runs", str(folder), *options], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_runs_are_listed_with_their_state_and_best_student(run, tmp_path):
    best = best_trial(RunFolder(run).trials())
    top = tmp_path / "runs"
    shutil.copytree(run, top / "x" / "complete")
    for name in ("interrupted", "running", "elsewhere", "killed", "damaged", "object"):
        shutil.copytree(run, top / name)
        lines = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
        (top / name / "trials.jsonl").write_bytes(b"".join(lines[:3]) + b'{"index": 3, "pl')
    (top / "empty").mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name, process, host in [("running", os.getpid(), ""), ("elsewhere", 1, "n7"), ("killed", gone.pid, "")]:
        write_json(top / name / "process.json", {"process": process, "host": host or socket.gethostname()})
    (top / "damaged" / "trials.jsonl").write_text("[1]\n")
    data = read_json(top / "object" / "run.json")
    write_json(top / "object" / "run.json", data | {"search": {"evaluations": "many"}})
    before = sorted(map(str, top.rglob("*")))
    found = {Path(each["path"]).name: each for each in json.loads(listed(top, "--json"))}
    assert sorted(map(str, top.rglob("*"))) == before  # nothing was written, no lock left
    assert {name: each["state"] for name, each in found.items()} == {
        "complete": "complete", "interrupted": "interrupted", "running": "running", "elsewhere": "running", "killed": "interrupted",
        "damaged": "damaged", "object": "damaged",
    }  # fmt: skip
    complete = found["complete"]
    assert (complete["agent"], complete["done"], complete["asked"]) == ("random", 4, 4)
    assert (complete["best_reward"], complete["best_metric"]) == (best.reward, best.evaluation.metric)
    assert found["interrupted"]["done"] == 3 and "n7" in found["elsewhere"]["reason"]
    assert "line 1 of" in found["damaged"]["reason"] and "'evaluations' is 'many'" in found["object"]["reason"]
    table = listed(top).splitlines()
    assert table[0].split()[:3] == ["run", "agent", "teacher"] and len(table) == 8
    assert any("complete" in line and "4 of 4" in line and f"{best.reward:.4f}" in line for line in table)
    assert "no runs in" in listed(top / "empty")
    assert "there is no folder" in CliRunner().invoke(main, ["runs", str(top / "none")]).stderr


def test_a_run_is_running_while_a_search_works_in_it(run):
    with alone_in(run):
        assert state_of(run).state == "running"
    assert state_of(run).state == "complete" and not (run / "process.json").exists()
