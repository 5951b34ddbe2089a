"""What a run will take is said before it, from trial evaluations, and nothing of the run is changed by them."""

from __future__ import annotations

import re
import time

import numpy as np
from test_cli import call, refused, works

from compress_env.api import dry_run
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Memory
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.search.estimate import _seconds, estimate
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec, FinetuneSpec, ProblemSpec, SearchSpec

PAUSE = 0.02


class Slow(Memory):
    """Takes a known time for each student."""

    def __call__(self, plan, built=None):
        time.sleep(PAUSE)
        usage = dict(self.problem.cost_model.teacher)
        self._known[plan] = Evaluation({"accuracy": 0.5}, 0.1, usage, {"accuracy": 1.0}, usage)
        return self._known[plan]


def test_the_range_holds_the_time_that_evaluations_take():
    problem = Problem.build(ProblemSpec())
    objective = Objective(EnvironmentSpec(ProblemSpec()), problem=problem, evaluator=Slow(problem))
    found = estimate(objective, 100, None)
    assert found.sensitivities == 39 and found.evaluations == 100
    assert found.evaluation[0] < PAUSE * 1.1 and PAUSE < found.evaluation[1]
    np.testing.assert_allclose(found.search, [139 * seconds for seconds in found.evaluation])
    assert found.distillation == (0, 0) and found.memory > 100e6


def test_a_dry_run_says_what_everything_takes_and_writes_nothing(tmp_path):
    printed = works("search", "--agent", "random", "--evaluations", 50, "--dry-run", "--out", tmp_path / "a")
    assert re.fullmatch(
        r"estimate, from trial evaluations on this machine as busy as it is: an evaluation takes about .* (ms|s) \(.* to .*\); "
        r"50 evaluations( and 39 for sensitivities before)? about .*; 30 epochs of distillation about .*; memory about .* [GM]iB\n",
        printed,
    )
    assert list(tmp_path.iterdir()) == []
    assert "did you mean 'random'?" in refused("search", "--agent", "randm", "--dry-run", "--out", tmp_path / "a")


def test_the_first_line_of_a_search_is_the_estimate_and_its_trials_are_as_without(tmp_path):
    search = ("search", "--agent", "model", "--evaluations", 3, "--finetune-epochs", 0)
    result = call(*search, "--out", tmp_path / "a")
    accuracy, first = result.stderr.splitlines()[:2]
    assert "accuracy" in accuracy and first.startswith("estimate, from trial evaluations"), result.stderr[:200]
    assert "epochs of distillation" not in result.stderr
    from compress_env.api import run_search

    silent, _ = run_search(EnvironmentSpec(), SearchSpec("model", {}, 3, 0), tmp_path / "b", progress=False)
    pairs = list(zip(RunFolder(tmp_path / "a").trials(), silent.trials(), strict=True))
    assert all(one.same(other) for one, other in pairs) and not any(one.repeated for one, _ in pairs)
    left = dry_run(EnvironmentSpec(), SearchSpec("model", {}, 5, 0), tmp_path / "a", resume=True, progress=False)
    assert (left.evaluations, left.sensitivities) == (2, 0)


def test_a_trial_that_fails_is_part_of_the_estimate(monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory is left\nfor this")

    monkeypatch.setattr("compress_env.search.estimate.fit", broken)
    found = dry_run(EnvironmentSpec(), SearchSpec(evaluations=2), finetuning=FinetuneSpec(1), progress=False)
    assert "a trial failed (training: no memory is left)" in found.text()


def test_times_are_in_the_unit_that_suits_them():
    assert _seconds(0.01, 0.04) == "about 20 ms (10 to 40)" and _seconds(60, 135) == "about 1.5 min (1.0 to 2.2)"
    assert _seconds(7200, 7250) == "about 2.0 h"
