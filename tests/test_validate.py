"""Trials as records, and their validation: whatever a reward is made of, a forged number is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.objective import Objective
from compress_env.search.run import search
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial, best_trial, ranked
from compress_env.search.validate import differences
from compress_env.spec import EnvironmentSpec, SearchSpec
from compress_env.surgery.plan import Plan

SPEC = EnvironmentSpec.of_keywords(
    budget={"macs": ["30%", "60%"]}, evaluator={"calibration_images": 64, "validation_images": 100}
)


def made_up(index=0, reward=0.5, used=0.4, failed="", repeated=False) -> Trial:
    evaluation = Evaluation({"accuracy": 0.5}, 0.25, {"macs": used}, {"accuracy": 0.9}, {"macs": 1.0}, failed, 0.125)
    plan = Plan.of(["a"], {"b": 3})
    return Trial(index, plan, evaluation, {"macs": 0.5}, reward, {"score": reward}, repeated, 0, 1.5, "p" * 16, "r" * 16)


@pytest.fixture(scope="module")
def recorded():
    """The trials of a search, and its objective as another process makes it."""
    trials = search(Objective(SPEC), "random", 4, seed=0, progress=False).trials
    return trials, Objective(SPEC)


def test_a_trial_survives_the_file_and_names_problem_and_ranking(tmp_path, recorded):
    trials, objective = recorded
    folder = RunFolder(tmp_path)
    for trial in trials:
        folder.append(trial)
    assert folder.trials() == trials
    assert {(t.problem, t.ranking) for t in trials} == {(objective.problem.id, objective.problem.ranking.id)}


def test_trials_are_the_same_whatever_time_they_took_and_in_nothing_else():
    trial = made_up()
    slower = replace(trial, seconds=9.0, evaluation=replace(trial.evaluation, seconds=9.0))
    assert trial.same(slower) and slower.same(trial)
    for other in (
        made_up(index=1), made_up(reward=0.6), made_up(used=0.3), made_up(failed="diverged"), made_up(repeated=True),
        replace(trial, ranking="other"), replace(trial, limits={"macs": 0.4}), replace(trial, plan=Plan()),
    ):  # fmt: skip
        assert not trial.same(other)


def test_the_best_trial_meets_the_budget_did_not_fail_and_is_the_earliest_of_equals():
    trials = [made_up(0, 0.9, used=0.6), made_up(1, 0.7), made_up(2, 0.7), made_up(3, 0.8, failed="diverged")]
    best = best_trial(trials)
    assert best is not None and best.index == 1
    assert best_trial(trials[:1]) is None
    assert [t.index for t in ranked([*trials, made_up(4, 0.95, repeated=True)])] == [3, 1, 2, 0]


def test_true_trials_validate(recorded):
    trials, objective = recorded
    assert differences(objective, trials, 10) == (len({t.plan for t in trials}), [])
    assert differences(objective, trials, 2) == (2, [])


def forged(trial: Trial, **numbers) -> Trial:
    return replace(trial, evaluation=replace(trial.evaluation, **numbers))


FORGERIES = {
    "accuracy was": lambda t: forged(t, metrics={"accuracy": t.evaluation.metric + 0.1}),
    "kl was": lambda t: forged(t, kl=t.evaluation.kl / 2),
    "kl was [0-9.]+": lambda t: forged(t, kl=t.evaluation.kl * (1 + 1e-12)),
    "macs was": lambda t: forged(t, usage=t.evaluation.usage | {"macs": 1.0}),
    "memory was None": lambda t: forged(t, usage={n: v for n, v in t.evaluation.usage.items() if n != "memory"}),
    "energy was 0.5, is now None": lambda t: forged(t, usage=t.evaluation.usage | {"energy": 0.5}),
    "the teacher's accuracy was": lambda t: forged(t, teacher_metrics={"accuracy": 0.5}),
    "the teacher's macs was": lambda t: forged(t, teacher_usage=t.evaluation.teacher_usage | {"macs": 1e9}),
    "failed was 'no', is now ''": lambda t: forged(t, failed="no"),
    "reward was 2.0": lambda t: replace(t, reward=2.0),
    "reward term score was 2.0": lambda t: replace(t, reward_terms=t.reward_terms | {"score": 2.0}),
    "reward term bonus was 1.0, is now None": lambda t: replace(t, reward_terms=t.reward_terms | {"bonus": 1.0}),
    "its limit on macs is 1000000000.0": lambda t: replace(t, limits={"macs": 1e9}),
    "its limit on macs is None": lambda t: replace(t, limits={}),
    "it was recorded for the problem 0": lambda t: replace(t, problem="0"),
    "it was recorded for the ranking 0": lambda t: replace(t, ranking="0"),
}


@pytest.mark.parametrize("told", FORGERIES)
def test_a_forged_number_is_found(recorded, told):
    trials, objective = recorded
    best = max(trials, key=lambda t: t.reward)
    wrong = FORGERIES[told](best)
    checked, lines = differences(objective, [wrong if t is best else t for t in trials], 2)
    assert checked == 2 and len(lines) == 1
    with pytest.raises(UserError, match=f"^trial {best.index}: {told}"):
        raise UserError(lines[0])


def test_a_forged_repetition_is_found_beside_the_honest_trial(recorded):
    trials, objective = recorded
    again = replace(trials[0], index=4, repeated=True, reward=trials[0].reward + 1, reward_terms={"score": 2.0, "resource": 0.0})
    assert [line[:20] for line in differences(objective, [*trials, again], 9)[1]] == ["trial 4: reward was "]


def test_a_run_is_resumed_with_its_settings_only(tmp_path):
    folder, spec = RunFolder(tmp_path), SearchSpec(agent="random", evaluations=5)
    folder.admit(SPEC, spec, resume=False)
    folder.begin(SPEC, spec, "a command")
    assert folder.spec() == (SPEC, spec) and folder.recorded()["command"] == "a command"
    folder.admit(SPEC, spec, resume=False)  # no trial yet
    folder.append(made_up())
    folder.admit(SPEC, spec, resume=True)
    with pytest.raises(UserError, match="has trials of an earlier run; add --resume"):
        folder.admit(SPEC, spec, resume=False)
    other = EnvironmentSpec.of_keywords(budget={"macs": 0.5}, evaluator={"calibration_images": 64, "validation_images": 100})
    with pytest.raises(UserError, match=r"it was begun with budget=\{'macs': \['30%', '60%'\]\}, not \{'macs': 0.5\}"):
        folder.admit(other, spec, resume=True)
    with pytest.raises(UserError, match="it was begun with seed=0, not 1"):
        folder.admit(SPEC, replace(spec, seed=1), resume=True)
    folder.begin(SPEC, replace(spec, seed=1), None)  # what is there stays
    assert folder.spec()[1].seed == 0
