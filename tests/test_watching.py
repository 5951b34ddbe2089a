"""Callbacks, logs and what else looks on at a search: it is told of everything, and changes nothing."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import call, refused, works

from compress_env.api import compress
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.search.callbacks import Callback
from compress_env.search.executors import Task
from compress_env.search.run import search
from compress_env.search.store import HOLDER, RunFolder, alone_in
from compress_env.spec import EnvironmentSpec

QUICK = {"budget": {"macs": 0.4}, "evaluator": {"validation_images": 60, "calibration_images": 64}, "actions": "absolute"}
OWN = """
import pathlib
class Notes:
    def on_trial(self, trial):
        with pathlib.Path("notes").open("a") as file:
            print(trial.index, file=file)
def broken(): raise OSError("no server")
number = 3
"""


class Notes(Callback):
    def __init__(self):
        self.told = []

    def on_start(self, trials):
        self.told.append(("start", len(trials)))

    def on_trial(self, trial):
        self.told.append(("trial", trial.index))

    def on_best(self, trial):
        self.told.append(("best", trial.index))

    def on_end(self):
        self.told.append(("end", None))


@pytest.fixture(scope="module")
def objective():
    return Objective(EnvironmentSpec.of_keywords(**QUICK))


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def so_far(trials):
    """For each trial whether it is the best so far, in other words than those of the package."""
    rewards = [t.reward if t.feasible and not t.evaluation.failed else -np.inf for t in trials]
    return [r > max(rewards[:i], default=-np.inf) for i, r in enumerate(rewards)]


def expected(trials, first=0):
    told = [("start", first)]
    for trial, best in list(zip(trials, so_far(trials)))[first:]:
        told += [("trial", trial.index)] + [("best", trial.index)] * best
    return [*told, ("end", None)]


def test_a_callback_is_told_of_each_trial_once_and_after_it_was_recorded(objective, tmp_path):
    class Reading(Notes):
        def on_trial(self, trial):
            assert RunFolder(tmp_path).trials()[-1].same(trial)
            super().on_trial(trial)

    first, second = Reading(), Reading()
    search(objective, "random", 4, 0, tmp_path, progress=False, callbacks=[first])
    trials = search(objective, "random", 9, 0, tmp_path, progress=False, callbacks=[second]).trials
    assert first.told == expected(trials[:4]) and second.told == expected(trials, 4)
    assert 1 < sum(so_far(trials)) < 9


def test_a_callback_that_raises_or_draws_at_random_changes_no_trial(objective):
    class Rude:
        def on_trial(self, trial):
            random.seed(0), np.random.seed(0), torch.manual_seed(0)
            raise OSError(f"no server at trial {trial.index}")

    alone = search(objective, "ddpg", 6, 0, progress=False).trials
    with pytest.warns(UserWarning) as warned:
        trials = search(objective, "ddpg", 6, 0, progress=False, callbacks=[Rude(), notes := Notes()]).trials
    assert [t.plan for t in trials] == [t.plan for t in alone] and notes.told == expected(alone)
    assert [str(w.message) for w in warned] == [
        "the callback Rude failed in on_trial: OSError: no server at trial 0; the search goes on, and calls it again",
        "the callback Rude failed 6 times, the last in on_trial: OSError: no server at trial 5",
    ]


def test_a_callback_may_end_the_search_as_ctrl_c_does(objective):
    class Enough(Notes):
        def on_trial(self, trial):
            super().on_trial(trial)
            if trial.index == 2:
                raise KeyboardInterrupt

    found = search(objective, "random", 9, 0, progress=False, callbacks=[enough := Enough()])
    assert found.interrupted and len(found.trials) == 3 and enough.told[-2:] == [("trial", 2), ("end", None)]


def test_callbacks_are_named_at_the_command_line_and_may_change_when_a_run_is_resumed(own):
    common = ["search", "--agent", "random", "--finetune-epochs", 0, "--out", "a", *("--budget", "macs=0.4")]
    works(*common, "--evaluations", 2)
    works(*common, "--evaluations", 4, "--resume", "--callback", "own.py:Notes")
    assert own.with_name("notes").read_text().split() == ["2", "3"]
    recorded = json.loads(Path("a/run.json").read_text())
    recorded["search"]["callbacks"] = ["own.py:Notes"]  # as somebody could send it
    Path("a/run.json").write_text(json.dumps(recorded))
    works(*common, "--evaluations", 5, "--resume")
    works("validate", "--out", "a", "--count", 1)
    assert own.with_name("notes").read_text().split() == ["2", "3"]


@pytest.mark.parametrize("place, told", [
    ("own.py:Nots", "did you mean 'Notes'?"),
    ("own.py:number", "the callback 'own.py:number' is no class or function that makes one, but int"),
    ("own.py:broken", "the callback 'own.py:broken' cannot be made: OSError: no server"),
    ("collections:Counter", "'collections:Counter' is no callback: it needs at least one of on_start, on_trial, on_best, on_end"),
])  # fmt: skip
def test_a_callback_that_cannot_be_used_is_named_before_any_work(own, place, told):
    assert told in refused("search", "--callback", place, "--out", "a")
    assert not own.with_name("a").exists()


def test_objects_are_callbacks_too_and_leave_no_trace_in_the_run(tmp_path):
    settings = dict(agent="random", finetune_epochs=0, progress=False, **QUICK)
    compress(**settings, evaluations=2, out=tmp_path, callbacks=[notes := Notes()])
    assert notes.told == expected(RunFolder(tmp_path).trials())
    assert json.loads((tmp_path / "run.json").read_text())["search"]["callbacks"] == []
    compress(**settings, evaluations=3, out=tmp_path, resume=True)
    for wrong, told in ((Notes, r"give an object, Notes\(\)"), ("own.py:Notes", "have to be a list")):
        with pytest.raises(UserError, match=told):
            compress(**settings, callbacks=[wrong] if wrong is Notes else wrong)


def test_trials_are_logged_under_the_name_of_the_package(objective, caplog):
    with caplog.at_level(logging.INFO, "compress_env"):
        trials = search(objective, "random", 3, 0, progress=False).trials
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("compress_env.")]
    macs = trials[1].evaluation.usage["macs"] / trials[1].evaluation.teacher_usage["macs"]
    numbers = f"trial 1: reward {trials[1].reward:.4f}, accuracy {trials[1].evaluation.metric:.4f}, {macs:.1%}"
    assert f"{numbers[:-1]} % of macs, within the budget" in lines
    assert [line for line in lines if "best so far" in line] == [
        f"trial {i} is the best so far" for i, best in enumerate(so_far(trials)) if best
    ]
    assert not logging.getLogger("compress_env").handlers


def test_the_bar_says_how_many_workers_are_busy(objective, monkeypatch, capsys):
    from test_workers import OwnThread, Pool

    def start(_):
        return OwnThread(Objective(objective.spec), lambda judge, task: judge(task) if isinstance(task, Task) else None)

    workers = [start(0), start(1)]
    monkeypatch.setattr("compress_env.search.run.executor_for", lambda *_: Pool(objective, 2, workers.__getitem__))
    search(objective, "random", 5, 1)
    lines = capsys.readouterr().err.strip().split("\r")
    assert set(re.findall(r"best accuracy 0.\d+, (.) of 2 workers busy", "".join(lines))) == {"1", "2"}
    assert "5/5" in lines[-1] and "busy" not in lines[-1]


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(e.step, e.value) for e in EventAccumulator(str(folder), {"scalars": 0}).Reload().Scalars(tag)]


def steps_on_disk(folder, tag):
    """The steps of a scalar in all files, before anything is hidden."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for file in sorted(folder.iterdir()) for event in EventFileLoader(str(file)).Load()]
    return [event.step for event in events for value in event.summary.value if value.tag == tag]


def test_tensorboard_has_every_trial_once_whatever_was_interrupted(objective, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "tensorboard" / "trials"
    search(objective, "random", 3, 0, tmp_path, progress=False)
    search(objective, "random", 5, 0, tmp_path, progress=False, tensorboard=True)
    (newest,) = folder.iterdir()
    newest.write_bytes(newest.read_bytes()[:-30])  # as a process leaves it that is killed
    trials = search(objective, "random", 9, 0, tmp_path, progress=False, tensorboard=True).trials
    assert steps_on_disk(folder, "search/reward") == list(range(9))
    accuracy, macs, best, front = [], [], [], []
    for i, trial in enumerate(trials):
        found = trials[: i + 1]
        accuracy.append(trial.evaluation.metric)
        macs.append(trial.evaluation.usage["macs"] / trial.evaluation.teacher_usage["macs"])
        best.append(max(t.reward for t in found))
        points = {(t.evaluation.metric, -t.evaluation.usage["macs"]) for t in found}
        front.append(sum(not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points) for p in points))
    expected = {"search/reward": [t.reward for t in trials], "search/accuracy": accuracy, "usage/macs": macs, "best/reward": best,
                "search/feasible": [1.0] * 9, "search/front": front}  # fmt: skip
    for tag, values in expected.items():
        assert scalars(folder, tag) == [(i, pytest.approx(value)) for i, value in enumerate(values)], tag
    assert max(front) > 1


def test_scalars_of_stable_baselines_are_beside_them_and_come_once(objective, tmp_path):
    pytest.importorskip("tensorboard")
    quick = {"gradient_steps": 1, "policy_kwargs": {"net_arch": [8]}}
    search(objective, "ddpg", 6, 0, tmp_path, progress=False, settings=quick, tensorboard=True)
    (tmp_path / "agent.checkpoint").unlink()  # so that the agent plays all of it again
    search(objective, "ddpg", 12, 0, tmp_path, progress=False, settings=quick, tensorboard=True)
    assert {folder.name for folder in (tmp_path / "tensorboard").iterdir()} == {"DDPG", "trials"}
    steps = steps_on_disk(tmp_path / "tensorboard" / "DDPG", "train/critic_loss")
    assert len(steps) >= 3 and steps == sorted(set(steps))


def test_without_tensorboard_the_cure_is_named_before_any_work(tmp_path, objective, monkeypatch):
    monkeypatch.setattr("compress_env.extras.find_spec", lambda name: None)
    line = refused("search", "--tensorboard", "--out", tmp_path / "a")
    assert '--tensorboard needs the package tensorboard; install it with: pip install "compress-env[tensorboard]"' in line
    option = ("--agent", "stable_baselines3:SAC", "--agent-option", "tensorboard_log=tb")
    assert "tensorboard_log needs the package tensorboard" in refused("search", *option, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_scalars_need_a_run_folder(objective):
    pytest.importorskip("tensorboard")
    with pytest.raises(UserError, match="give out=FOLDER"):
        search(objective, "random", 1, 0, progress=False, tensorboard=True)


def test_a_report_of_a_run_that_is_still_going_says_so_and_disturbs_nothing(tmp_path):
    from test_report import run_folder

    run = RunFolder(run_folder(tmp_path))
    with alone_in(tmp_path):
        works("report", "--out", tmp_path)
        assert "still going" not in (tmp_path / "report.html").read_text()  # a run writes its own
        run.write(HOLDER, {"process": os.getppid(), "host": socket.gethostname()})
        files = {file.name for file in tmp_path.iterdir()}
        told = call("report", "--out", tmp_path).output
        assert {file.name for file in tmp_path.iterdir()} == files and ".lock" in files
    going = f"his run is still going (process {os.getppid()}): 4 of 150 evaluations so far"
    page = (tmp_path / "report.html").read_text()
    assert f"t{going}" in told and f"<p>T{going}. To see" in page and "compress-env finetune" not in page
    works("report", "--out", tmp_path)
    assert "still going" not in (page := (tmp_path / "report.html").read_text()) and "compress-env finetune" in page
