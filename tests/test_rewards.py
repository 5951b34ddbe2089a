"""Rewards are pure functions with the values of their papers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from compress_env.errors import UserError
from compress_env.rewards import FAILED, REWARDS, Outcome, evaluate


def outcome(accuracy=0.8, used=0.4, limit=0.5, failed="") -> Outcome:
    teacher = {"params": 1000.0, "macs": 1e6}
    usage = {"params": used * 1000, "macs": used * 1e6}
    return Outcome(accuracy, 0.9, usage, teacher, {"macs": limit * 1e6}, failed)


def test_values_computed_by_hand():
    value = {name: evaluate(reward, outcome())[0] for name, reward in REWARDS.items()}
    assert value["relative"] == pytest.approx(0.8 / 0.9)
    likely = replace(outcome(), likeness=0.4)
    score = evaluate(REWARDS.get("relative"), likely)[1]["score"]  # the finer measure where there is one
    assert score == pytest.approx(1 / (1 + math.log(1 / 0.4) / 0.4**0.3))
    assert replace(likely, likeness=1.0).score == 1 and replace(likely, likeness=0.0).score == 0
    assert evaluate(REWARDS.get("n2n"), likely)[0] == value["n2n"]  # as its paper defines it
    assert value["n2n"] == pytest.approx(0.6 * 1.4 * 0.8 / 0.9)
    assert value["amc_error"] == pytest.approx(-0.2)
    assert value["amc_flops"] == pytest.approx(-0.2 * math.log(4e5))


@pytest.mark.parametrize("name", REWARDS.names())
def test_better_accuracy_never_lowers_a_reward_and_terms_add_up(name):
    values = [evaluate(REWARDS.get(name), outcome(accuracy=a / 20))[0] for a in range(21)]
    assert values == sorted(values) and values[0] < values[-1]
    total, terms = evaluate(REWARDS.get(name), outcome())
    assert total == sum(terms.values()) and terms["failed"] == 0


@pytest.mark.parametrize("name", REWARDS.names())
def test_a_failed_student_gives_the_defined_reward_under_the_same_terms(name):
    total, terms = evaluate(REWARDS.get(name), outcome(accuracy=0.0, failed="out of memory"))
    assert total == FAILED == sum(terms.values())
    assert terms.keys() == evaluate(REWARDS.get(name), outcome())[1].keys()


def test_the_resource_term_is_active_only_above_the_limit():
    assert evaluate(REWARDS.get("relative"), outcome(used=0.5))[1]["resource"] == 0
    assert evaluate(REWARDS.get("relative"), outcome(used=0.75))[1]["resource"] == pytest.approx(-0.5)


def test_a_reward_of_ones_own_by_module_and_attribute(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def cubed(outcome):\n    return outcome.accuracy ** 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    total, terms = evaluate(REWARDS.get("mine:cubed"), outcome())
    assert total == pytest.approx(0.512) and terms == {"cubed": total, "failed": 0.0}


def test_a_reward_that_is_no_number_is_an_error():
    with pytest.raises(UserError, match="has to be finite"):
        evaluate(lambda o: float("nan"), outcome())
