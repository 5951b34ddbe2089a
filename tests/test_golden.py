"""Plans, usage and evaluations recorded at commit 12db54c hold on every machine; `benchmarks/golden.py` compares to the last bit.

Recorded by its `before`: with half of the validation images, which is what a search sees since.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.search.run import search
from compress_env.spec import EnvironmentSpec

CASES = json.loads(Path(__file__).with_name("golden.json").read_text())
_PROBLEMS: dict[tuple[str, str], Problem] = {}


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join([c["teacher"], c["agent"], c["schedule"], *c["budget"]]))
def test_agents_that_do_not_learn_find_the_recorded_students(case):
    key = case["teacher"], case["schedule"]
    spec = EnvironmentSpec.of_keywords(
        teacher=key[0], schedule=key[1], budget=case["budget"], actions="absolute", shaping=False
    )
    objective = Objective(spec, problem=_PROBLEMS.get(key))
    _PROBLEMS[key] = objective.problem
    trials = search(objective, case["agent"], len(case["trials"]), 0, progress=False).trials
    images = len(objective.evaluator.validation)
    for trial, recorded in zip(trials, case["trials"], strict=True):
        assert json.loads(trial.plan.to_json()) == recorded["plan"]
        assert trial.evaluation.usage == recorded["usage"]
        # Other processors add up in another order: two images, and a hundredth of the KL
        assert trial.evaluation.metric == pytest.approx(recorded["metric"], abs=2.5 / images)
        assert trial.evaluation.kl == pytest.approx(recorded["kl"], rel=0.01, abs=1e-3)
        assert trial.reward == pytest.approx(recorded["reward"], rel=0.01)
