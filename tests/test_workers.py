"""Searches whose students are judged by several workers, and what becomes of workers that are lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_env.agents.model import ModelSearch
from compress_env.agents.random import RandomSearch
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.search import executors
from compress_env.search.executors import Outcome, executor_for, on_ray
from compress_env.search.executors.pool import ATTEMPTS, NoRoom, Pool, WorkerLost
from compress_env.search.executors.worker import Bench, Order
from compress_env.search.run import search
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec
from compress_env.teachers import load_teacher

SETTINGS = {"budget": {"macs": 0.4}, "evaluator": {"validation_images": 60, "calibration_images": 64}, "actions": "absolute"}


@pytest.fixture(scope="module")
def spec() -> EnvironmentSpec:
    return EnvironmentSpec.of_keywords(**SETTINGS)


@pytest.fixture
def objective(spec) -> Objective:
    return Objective(spec)


@pytest.fixture(scope="module")
def alone(spec):
    """The trials of a search in one process."""
    return search(Objective(spec), RandomSearch, 9, 0, progress=False).trials


ONE = threading.Lock()


class OwnThread:
    """A worker in this process that judges as `how` says."""

    def __init__(self, objective: Objective, how=lambda judge, task: judge(task)):
        self.objective, self.how, self.ended = objective, how, False

    def judge(self, task):
        def judged(task):
            with ONE:  # what is traced and seeded is the process's
                found = self.objective.judge_plan(task.removed, task.widths, task.limits)
            return Outcome(found.plan, found.evaluation)

        return self.how(judged, task)

    def end(self, idle):
        self.ended = True


def with_pool(monkeypatch, start, places=2):
    """Searches have these workers, made beforehand."""
    workers = [start(place) for place in range(places)]
    monkeypatch.setattr("compress_env.search.run.executor_for", lambda objective, *_: Pool(objective, places, workers.__getitem__))


def same(trials, others):
    return [a.same(b) for a, b in zip(trials, others, strict=True)] == [True] * len(trials)


def test_processes_find_the_same_students_also_if_one_is_killed(spec, alone, tmp_path):
    def children():
        found = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
        return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    class Killing(RandomSearch):
        def tell(self, trials):
            if trials[0].index == 4:
                os.kill(children()[0], signal.SIGKILL)

    with pytest.warns(UserWarning, match="is lost .its process died.; its student is tried again"):
        found = search(Objective(spec), Killing, 9, 0, tmp_path, progress=False, workers=2)
    assert same(found.trials, alone) and same(RunFolder(tmp_path).trials(), alone)
    assert not children() and not (tmp_path / "ahead.jsonl").exists()


def test_ray_finds_the_same_students_and_waits_for_no_node_that_is_gone(spec, alone, monkeypatch):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert same(search(Objective(spec), RandomSearch, 4, 0, progress=False, workers=2, cluster="auto").trials, alone[:4])
        monkeypatch.setattr(on_ray, "LOOK", 0.1)
        without_a_node = ray.remote(num_cpus=3)(Bench)
        with pytest.raises(WorkerLost, match="node that it was to be on is gone"):
            on_ray.Actor(ray, without_a_node, b"", None, lambda: True).judge(None)
    finally:
        ray.shutdown()


def test_without_a_cluster_the_cure_is_named(objective):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster at '127.0.0.1:1'.*ray start --head"):
        executor_for(objective, 2, "127.0.0.1:1")


def test_whoever_is_judged_first_the_trials_are_the_same(spec, alone, monkeypatch):
    turns = iter(range(100))

    def slow_first(judge, task):
        found = judge(task)
        time.sleep(0.05 if next(turns) % 3 == 0 else 0)
        return found

    with_pool(monkeypatch, lambda _: OwnThread(Objective(spec), slow_first), 4)
    assert same(search(Objective(spec), RandomSearch, 9, 0, progress=False).trials, alone)


def test_a_student_that_costs_every_worker_counts_as_failed(spec, alone, monkeypatch):
    lost = []

    def dying(judge, task):
        if np.array_equal(task.widths, widths):
            lost.append(task)
            raise WorkerLost("no memory")
        return judge(task)

    base = Objective(spec)
    widths = base.problem.graph.widths(alone[3].plan)
    with_pool(monkeypatch, lambda _: OwnThread(Objective(spec), dying))
    with pytest.warns(UserWarning, match="its student counts as failed"):
        trials = search(base, RandomSearch, 9, 0, progress=False).trials
    assert len(lost) == ATTEMPTS
    assert [t.index for t in trials if t.evaluation.failed] == [3] and trials[3].evaluation.transient
    assert "3 workers were lost with it, the last: no memory" in trials[3].evaluation.failed
    assert same([t for t in trials if t.index != 3], [t for t in alone if t.index != 3])


def test_a_place_without_room_is_given_up_and_the_trials_stay(spec, alone, monkeypatch):
    worker, started = OwnThread(Objective(spec)), []

    def start(place):
        started.append(place)
        if len(started) > 1:
            raise NoRoom("the cluster has 1 cores, each with a worker")
        return worker

    monkeypatch.setattr("compress_env.search.run.executor_for", lambda objective, *_: Pool(objective, 3, start))
    with pytest.warns(UserWarning, match=r"worker \d is given up .the cluster has 1 cores.*; the search goes on with 1"):
        trials = search(Objective(spec), RandomSearch, 9, 0, progress=False).trials
    assert same(trials, alone) and len(started) == 3


def test_what_was_judged_before_its_turn_outlives_an_interruption(spec, alone, monkeypatch, tmp_path):
    first, judged, gate = alone[0].plan, [], threading.Event()
    graph = Objective(spec).problem.graph

    def first_waits(judge, task):
        if graph.canonical(task.removed, task.widths) == first:
            gate.wait(60)
            raise KeyboardInterrupt
        judged.append(judge(task))
        if len(judged) == 3:
            threading.Timer(0.5, gate.set).start()
        return judged[-1]

    with_pool(monkeypatch, lambda _: OwnThread(Objective(spec), first_waits), 4)
    found = search(Objective(spec), RandomSearch, 9, 0, tmp_path, progress=False)
    assert found.interrupted and not found.trials
    ahead = RunFolder(tmp_path).ahead(Objective(spec).problem)
    assert set(ahead) == {t.plan for t in alone[1:4]}
    judged.clear()
    with_pool(monkeypatch, lambda _: OwnThread(Objective(spec), lambda judge, task: judged.append(task) or judge(task)), 4)
    assert same(search(Objective(spec), RandomSearch, 9, 0, tmp_path, progress=False).trials, alone)
    assert len(judged) == 9 - 3 and not (tmp_path / "ahead.jsonl").exists()


def test_a_worker_with_other_weights_or_versions_is_refused(objective, spec):
    order = Order.of(objective, 0)
    Bench(order)
    other = load_teacher("resnet8-digits").module
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    elsewhere = replace(spec, problem=replace(spec.problem, teacher=other, data="digits"))
    with pytest.raises(UserError, match="another problem than the search"):
        Bench(_changed(order, environment=elsewhere))
    with pytest.raises(UserError, match=r"a worker has torch .* and the search 0.1; install the same"):
        Bench(_changed(order, versions={**objective_versions(order), "torch": "0.1"}))


def _changed(order: bytes, **fields) -> bytes:
    import cloudpickle

    return cloudpickle.dumps(replace(cloudpickle.loads(order), **fields))


def objective_versions(order: bytes) -> dict[str, str]:
    import cloudpickle

    return cloudpickle.loads(order).versions


def test_what_workers_cannot_do_is_said_before_any_work(objective, spec, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(objective.problem.cost_model, "measured", ["macs"])
        with pytest.raises(UserError, match="macs, which is measured"):
            search(objective, RandomSearch, 2, progress=False, workers=2)
    own = Objective(spec, problem=objective.problem, evaluator=objective.evaluator)
    with pytest.raises(UserError, match="set workers=1"):
        search(own, RandomSearch, 2, progress=False, workers=2)
    with pytest.raises(UserError, match="workers must be at least 1"):
        executor_for(objective, 0, None)
    assert set(executors.EXECUTORS) == {"serial", "processes", "ray"}


def test_the_model_asks_for_no_student_twice_while_it_is_judged(spec):
    objective = Objective(replace(spec, actions="relative"))
    agent = ModelSearch(objective, 20, 0)
    (first,) = agent.ask(1)
    assert agent.ask(1) == []
    alone = search(objective, "model", 6, 0, progress=False).trials
    agent.tell([alone[0]])
    asked = [first.plan, *(agent.ask(1)[0].plan for _ in range(5))]
    assert len(set(asked)) == 6 and asked[1] == alone[1].plan
