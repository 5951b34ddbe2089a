"""Rewards are pure functions with the values of their papers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.rewards import FAILED, REWARDS
from compress_env.rewards import evaluate as evaluate_reward

LIMITS = {"macs": 0.5e6}


def evaluation(metric=0.8, used=0.4, failed="") -> Evaluation:
    usage, teacher = {"params": used * 1000, "macs": used * 1e6}, {"params": 1000.0, "macs": 1e6}
    return Evaluation({"accuracy": metric, "top5": 1.0}, None, usage, {"accuracy": 0.9, "top5": 1.0}, teacher, failed)


def evaluate(name, evaluation):
    return evaluate_reward(REWARDS.get(name), evaluation, LIMITS)


def test_values_computed_by_hand():
    value = {name: evaluate(name, evaluation())[0] for name in REWARDS.names()}
    assert value["relative"] == pytest.approx(0.8 / 0.9)
    known = replace(evaluation(), kl=0.9)
    score = evaluate("relative", known)[1]["score"]  # the finer measure where there is one
    assert score == pytest.approx(1 / (1 + 0.9 / 0.4**0.3))
    assert replace(known, kl=0.0).proxy_score == 1
    assert evaluate("n2n", known)[0] == value["n2n"]  # as its paper defines it
    assert value["n2n"] == pytest.approx(0.6 * 1.4 * 0.8 / 0.9)
    assert value["amc_error"] == pytest.approx(-0.2)
    assert value["amc_flops"] == pytest.approx(-0.2 * math.log(4e5))


def test_an_evaluation_is_json_and_its_time_is_no_part_of_it():
    found = replace(evaluation(), kl=0.5, seconds=2.0)
    assert Evaluation.from_json(found.to_json()) == found == replace(found, seconds=3.0) != replace(found, kl=0.6)
    assert found.meets({"macs": 0.4e6, "params": 400}) and not found.meets({"macs": 0.3e6})


@pytest.mark.parametrize("name", REWARDS.names())
def test_a_better_metric_never_lowers_a_reward_and_terms_add_up(name):
    values = [evaluate(name, evaluation(metric=a / 20))[0] for a in range(21)]
    assert values == sorted(values) and values[0] < values[-1]
    total, terms = evaluate(name, evaluation())
    assert total == sum(terms.values()) and terms["failed"] == 0


@pytest.mark.parametrize("name", REWARDS.names())
def test_a_failed_student_gives_the_defined_reward_under_the_same_terms(name):
    total, terms = evaluate(name, evaluation(metric=0.0, failed="out of memory"))
    assert total == FAILED == sum(terms.values())
    assert terms.keys() == evaluate(name, evaluation())[1].keys()


def test_the_resource_term_is_active_only_above_the_limit():
    assert evaluate("relative", evaluation(used=0.5))[1]["resource"] == 0
    assert evaluate("relative", evaluation(used=0.75))[1]["resource"] == pytest.approx(-0.5)


def test_a_reward_of_ones_own_by_module_and_attribute(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def cubed(evaluation, limits):\n    return evaluation.metric ** 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    total, terms = evaluate("mine:cubed", evaluation())
    assert total == pytest.approx(0.512) and terms == {"cubed": total, "failed": 0.0}


def test_a_reward_that_is_no_number_is_an_error():
    with pytest.raises(UserError, match="has to be finite"):
        evaluate_reward(lambda *_: float("nan"), evaluation(), LIMITS)
