"""A fault of one student is that student's failure, with its reason, and nothing else is lost."""

from __future__ import annotations

import math
import signal
import time
import warnings

import faults
import pytest
import torch

from compress_env import cache
from compress_env.errors import EveryStudentFailed, UserError
from compress_env.failures import EvaluationFailed, Patience, within
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources import RESOURCES
from compress_env.rewards import FAILED
from compress_env.search import search
from compress_env.search.recorder import HOPELESS
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec

SETTINGS = {"budget": {"macs": 0.6}, "timeout": 1}
USERS = EnvironmentSpec.of_keywords(teacher=faults.small(), data=faults.images(), **SETTINGS)
DIGITS = EnvironmentSpec.of_keywords(
    budget={"macs": 0.5}, timeout=10, evaluator={"calibration_images": 64, "validation_images": 100}
)
REASONS = {
    "exception": ("OwnError: no such layer", False),
    "assertion": ("AssertionError", False),
    "runtime": ("RuntimeError", False),
    "memory": ("MemoryError", True),
    "cuda memory": ("OutOfMemoryError: CUDA out of memory", True),
    "cpu memory": ("RuntimeError: [enforce fail at alloc_cpu.cpp:124]", True),
    "hang": ("TimeoutError: it took longer than 1 s", True),
    "busy": ("TimeoutError: it took longer than 1 s", True),
    "nan": ("the student's outputs are not finite", False),
}


@pytest.fixture(scope="module")
def measured() -> Objective:
    """The user's network with sensitivities, which later objectives take over."""
    objective = Objective(USERS)
    assert objective.sensitivities.evaluations > 5
    return objective


@pytest.fixture
def make(measured):
    """Fresh objectives of the user's network, whose teacher has been run."""

    def factory() -> Objective:
        objective = Objective(USERS, problem=measured.problem, sensitivities=measured.sensitivities)
        assert objective.evaluator is not None
        return objective

    return factory


@pytest.fixture(scope="module")
def digits():
    """Fresh objectives of digits."""
    first = Objective(DIGITS)
    assert first.sensitivities.evaluations > 5

    def factory() -> Objective:
        return Objective(DIGITS, problem=first.problem, sensitivities=first.sensitivities)

    return factory


@pytest.fixture(autouse=True)
def _no_fault_is_left():
    yield
    faults.FAULTS.clear()


def strikes(monkeypatch, objective: Objective, name: str, when: set[int]) -> None:
    """A fault in the forward of some students, counted from 0 by the evaluations that are begun."""
    began, judge = iter(range(10**6)), objective.evaluator.outputs

    def outputs(student, plan):
        faults.FAULTS.clear()
        if next(began) in when:
            faults.FAULTS["now"] = faults.fault(name)
        try:
            return judge(student, plan)
        finally:
            faults.FAULTS.clear()

    monkeypatch.setattr(objective.evaluator, "outputs", outputs)


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_fault_is_recorded_with_its_reason_and_the_search_goes_on(name, make, tmp_path, monkeypatch):
    whole = search(make(), "random", 5, progress=False).trials
    objective = make()
    retried = "memory" in name  # once more
    strikes(monkeypatch, objective, name, {2, 3} if retried else {2})
    found = search(objective, "random", 5, out=tmp_path, progress=False).trials
    reason, transient = REASONS[name]
    failed = found[2].evaluation
    assert failed.failed.startswith(reason) and "\n" not in failed.failed
    assert (failed.transient, failed.kl, failed.metrics, found[2].reward) == (transient, None, {"accuracy": 0.0}, FAILED)
    assert failed.usage == whole[2].evaluation.usage  # counted before it ran
    assert [t.plan for t in found] == [t.plan for t in whole]
    assert all(a.same(b) for i, (a, b) in enumerate(zip(found, whole)) if i != 2)
    again = search(make(), "random", 7, out=tmp_path, progress=False).trials  # which replays the failed one as it was
    assert all(a.same(b) for a, b in zip(again, found)) and len(again) == 7
    later = make()
    assert later.evaluator.known(found[2].plan) is None  # of another process
    search(later, "random", 7, out=tmp_path, progress=False)
    assert (later.evaluator.known(found[2].plan) is None) == transient  # nothing is remembered that the machine caused


@pytest.mark.parametrize("name", ["exception", "nan", "memory", "hang"])
def test_a_fault_in_a_search_of_digits_is_recorded_likewise(name, digits, tmp_path, monkeypatch):
    objective, whole = digits(), search(digits(), "random", 4, progress=False).trials
    monkeypatch.setattr(objective.evaluator.patience, "_given", 1.0)
    outputs, began = objective.evaluator.outputs, iter(range(100))

    def fails(student, plan):
        if next(began) in (1, 2 if name == "memory" else 1):
            return faults.fault(name)(torch.zeros(1)) if name != "nan" else _not_finite()
        return outputs(student, plan)

    monkeypatch.setattr(objective.evaluator, "outputs", fails)
    found = search(objective, "random", 4, out=tmp_path, progress=False).trials
    reason, transient = REASONS[name]
    assert found[1].evaluation.failed.startswith(reason) and found[1].evaluation.transient == transient
    assert [t.plan for t in found] == [t.plan for t in whole] == [t.plan for t in RunFolder(tmp_path).trials()]
    assert all(a.same(b) for a, b in zip(found, whole) if a.plan != found[1].plan)  # which comes again


def _not_finite():
    raise EvaluationFailed("the student's outputs are not finite")


def test_short_memory_is_tried_once_more_and_with_a_smaller_batch(make, monkeypatch):
    whole = search(make(), "random", 3, progress=False).trials
    objective = make()
    strikes(monkeypatch, objective, "memory", {1})
    found = search(objective, "random", 3, progress=False).trials
    assert all(a.same(b) for a, b in zip(found, whole))
    seen = []

    def large(outputs):
        seen.append(len(outputs))
        if len(outputs) > 8:
            raise MemoryError
        return outputs

    objective = make()
    evaluator, plan = objective.evaluator, whole[0].plan
    monkeypatch.setattr(type(objective.evaluator), "prepare", lambda *_: None)
    evaluator.at_once = 16
    faults.FAULTS["now"] = large
    assert not evaluator(plan).failed
    assert [n for n in seen if n > 1] == [16] + [2] * 8  # half of the 32 validation images; one at a time is counted with


@pytest.mark.parametrize("name", ["exception", "hang"])
def test_a_search_in_which_nothing_can_be_evaluated_stops_and_says_why(name, make, tmp_path, monkeypatch):
    objective = make()
    strikes(monkeypatch, objective, name, set(range(100)))
    monkeypatch.setattr(objective.evaluator.patience, "_given", 0.02)
    reason = REASONS[name][0].removesuffix(" than 1 s")
    with pytest.raises(EveryStudentFailed, match=rf"none of the first {HOPELESS} students could be evaluated \({reason}.*\); \w"):
        search(objective, "random", 100, out=tmp_path, progress=False)
    assert len(RunFolder(tmp_path).trials()) == HOPELESS
    if name == "hang":  # the machine has been seen to
        again = search(make(), "random", HOPELESS + 2, out=tmp_path, progress=False).trials
        assert not again[-1].evaluation.failed and len(again) == HOPELESS + 2


def test_a_machine_that_fails_in_the_middle_ends_the_search_and_a_network_that_fails_in_parts_does_not(make, monkeypatch):
    for name, ends in (("cuda memory", True), ("nan", False)):
        objective = make()
        monkeypatch.setattr("compress_env.evaluator.release_memory", lambda: None)  # which takes long in a process of many tests
        strikes(monkeypatch, objective, name, set(range(3, 100)))
        if ends:
            with pytest.raises(EveryStudentFailed, match=f"none of the last {HOPELESS} students .* go on with --resume"):
                search(objective, "random", 200, progress=False)
        else:
            assert len(search(objective, "random", 30, progress=False).trials) == 30


def test_a_fault_amid_the_sensitivities_is_named_and_kept_only_if_the_network_is_the_cause(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    for name, kept in (("memory", 0), ("exception", 1)):
        objective = Objective(USERS, problem=measured.problem)
        strikes(monkeypatch, objective, name, {1, 2} if name == "memory" else {1})
        with pytest.warns(UserWarning, match=rf"1 of \d+ students that sensitivities .* {REASONS[name][0]}"):
            found = objective.sensitivities
        assert [reason.startswith(REASONS[name][0]) for reason in found.failed.values()] == [True]
        assert len(list(cache.folder("sensitivities").glob("*"))) == kept
    objective = Objective(USERS, problem=measured.problem)
    cache.folder("sensitivities").rename(tmp_path / "away")
    strikes(monkeypatch, objective, "runtime", set(range(100)))
    with pytest.raises(EveryStudentFailed, match=r"none of the first \d+ students of .* could be evaluated \(RuntimeError"):
        _ = objective.sensitivities


def test_a_student_that_cannot_be_counted_or_built_fails_alone(make, monkeypatch):
    whole = search(make(), "random", 4, progress=False).trials
    for place in ("count", "build"):
        objective, calls = make(), iter(range(1000))
        resource, build = RESOURCES.get("memory"), Problem.built

        def count(module, example, count=resource.count, calls=calls):
            if next(calls) in (1, 2):  # the second student, in `finish` and by itself
                raise OverflowError
            return count(module, example)

        def built(self, plan, calls=calls, build=build):
            if next(calls) == 1:
                raise OverflowError
            return build(self, plan)

        with monkeypatch.context() as patched:
            if place == "count":
                patched.setattr(type(resource), "count", lambda self, *a, count=count: count(*a))
            else:
                patched.setattr(Problem, "candidate", lambda self, removed, widths: built(self, self.graph.canonical(removed, widths)))
            found = search(objective, "random", 4, progress=False).trials
        if place == "count":
            assert found[1].evaluation.failed == "OverflowError" and found[1].evaluation.usage == whole[1].evaluation.usage
        assert all(a.same(b) for i, (a, b) in enumerate(zip(found, whole)) if i != 1)


def test_ctrl_c_in_a_forward_ends_the_search(make, monkeypatch):
    objective = make()
    strikes(monkeypatch, objective, "interrupt", {2})
    found = search(objective, "random", 5, progress=False)
    assert found.interrupted and len(found.trials) == 2


def test_the_limit_is_generous_given_or_off_and_the_timer_of_others_goes_on():
    limit = Patience()
    assert limit.seconds == 3600 and limit(lambda: 3) == 3 and limit.seconds == 60
    limit._first = 10.0
    assert limit.seconds == 300 and Patience(0).seconds == 0 and Patience(7).seconds == 7
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(EvaluationFailed, match="longer than 0.05 s"):
            within(0.05, lambda: time.sleep(9))
        assert within(5, lambda: 1) == 1 and (rung or 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 2)
        for _ in range(100):
            time.sleep(0 if rung else 0.1)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for wrong in (-1, math.nan, math.inf, "5", True):
        with pytest.raises(UserError, match="timeout has to be (a number from 0 to|finite)"):
            EnvironmentSpec.of_keywords(timeout=wrong)


def test_numbers_that_are_not_finite_are_a_failure(make, monkeypatch):
    objective = make()
    monkeypatch.setattr(type(objective.problem.task), "divergence", lambda *_: math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = search(objective, "random", 2, progress=False).trials
    assert found[0].evaluation.failed.startswith("the student's numbers are not finite: KL inf")
    assert torch.get_num_threads() == 1
