"""Accuracy guaranteed: the smallest student that loses at most so many points, what that is worth, and runs that go on."""

from __future__ import annotations

import json
import math
from unittest import mock

import pytest
import torch
from allocations import QUICK
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from test_cli import call

from compress_env import compress, finishing, guarantee
from compress_env.bisection import Bisection
from compress_env.errors import UserError
from compress_env.resources.cost_model import CostModel
from compress_env.search.promise import attempts_in
from compress_env.search.result import Result
from compress_env.search.store import RunFolder
from compress_env.tasks.agreement import Agreement
from compress_env.tasks.classification import Classification
from compress_env.tasks.paired import drop, upper_bound

# The bisection


def bisected(holds, low=0.1, high=1.0, precision=0.02, certain=True, saved=0.0):
    """The bisection of a curve, and the budgets that were tried; what holds uses a share `saved` less than its budget."""
    search, tried, held = Bisection(low, high, precision, certain), [], []
    most = search.most
    while (budget := search.next) is not None:
        tried.append(budget)
        held += [budget * (1 - saved)] * holds(budget)
        search.tell(budget, held[-1] if holds(budget) else None)
    assert search.best == min(held, default=None)
    assert len(tried) <= most and len(set(tried)) == len(tried)
    return search, tried


@pytest.mark.parametrize("edge", [0.1, 0.237, 0.55, 0.9, 0.97])
@pytest.mark.parametrize("saved", [0.0, 0.01])
def test_the_edge_of_a_monotone_curve_is_found_to_the_precision(edge, saved):
    search, tried = bisected(lambda budget: budget >= edge, saved=saved)
    assert len(tried) <= math.ceil(math.log2(0.9 / 0.02)) == 6
    assert search.best is not None and edge * (1 - saved) <= search.best <= edge + 0.02
    assert search.high - search.low <= 0.02


def test_of_a_curve_that_is_not_monotone_the_smallest_that_was_seen_to_hold_is_the_outcome():
    search, tried = bisected(lambda budget: 0.3 < budget < 0.4 or budget > 0.8)
    assert tried[0] == 0.55 and search.best == min(b for b in tried if b > 0.8)
    search, tried = bisected(lambda budget: 0.5 < budget < 0.6 or 0.3 < budget < 0.35)
    assert search.best == min(b for b in tried if b > 0.3) < 0.32


def test_where_nothing_holds_the_largest_budget_is_tried_last_unless_it_is_the_teacher():
    search, tried = bisected(lambda budget: False)
    assert search.best is None and max(tried) < 1 and tried == sorted(tried)
    search, tried = bisected(lambda budget: False, high=0.8, certain=False)
    assert search.best is None and tried[-1] == 0.8
    search, tried = bisected(lambda budget: budget >= 0.8, high=0.8, certain=False)
    assert search.best == 0.8 == tried[-1]
    search, tried = bisected(lambda budget: budget >= 0.5, high=0.8, certain=False)
    assert 0.8 not in tried and 0.5 <= search.best < 0.52


# The interval


def test_the_bound_is_tangos_score_interval_as_published():
    """Airway hyper-responsiveness, 21 children, 1 and 7 discordant: -0.517 to -0.026 (Fagerland et al., Stat Med 33, 2014, table)."""
    assert upper_bound(1, 7, 21, 0.975) == pytest.approx(-0.026, abs=5e-4)
    assert upper_bound(7, 1, 21, 0.975) == pytest.approx(0.517, abs=5e-4)
    square = norm.ppf(0.95) ** 2
    assert upper_bound(0, 0, 100) == pytest.approx(square / (100 + square))
    assert upper_bound(100, 0, 100) == 1


@pytest.mark.parametrize("lost, gained, n", [(60, 40, 5000), (3, 9, 250), (0, 5, 100), (5, 0, 100), (40, 20, 160)])
def test_at_the_bound_the_score_statistic_with_the_most_likely_rest_is_at_its_quantile(lost, gained, n):
    bound = upper_bound(lost, gained, n)

    def unlikely(rare: float) -> float:
        chances = rare + bound, rare, 1 - 2 * rare - bound
        if min(chances) <= 0:
            return math.inf
        return -sum(count * math.log(p) for count, p in zip((lost, gained, n - lost - gained), chances))

    rare = minimize_scalar(unlikely, bounds=(max(0, -bound), (1 - bound) / 2), method="bounded", options={"xatol": 1e-12}).x
    deviation = math.sqrt((2 * rare + bound - bound**2) / n)
    assert ((lost - gained) / n - bound) / deviation == pytest.approx(norm.ppf(0.05), abs=1e-4)


def test_a_drop_counts_what_only_one_of_both_has_right():
    labels = torch.arange(100) % 2
    teacher, student = (torch.nn.functional.one_hot(labels, 2).float() for _ in range(2))
    teacher[:10] = 1 - teacher[:10]  # wrong
    student[5:25] = 1 - student[5:25]  # 15 that the teacher has right, and 5 that it has wrong, too
    found = drop(Classification(), teacher, student, labels)
    assert (found.lost, found.gained, found.examples, found.method) == (15, 5, 100, "score")
    assert found.points == pytest.approx(10) and (found.teacher, found.student) == pytest.approx((0.9, 0.8))
    assert found.bound == pytest.approx(100 * upper_bound(15, 5, 100))
    assert found.within(10) and not found.within(9.9) and found.surely_within(found.bound) and not found.surely_within(10)


def test_what_has_no_labels_counts_what_differs_from_the_teacher():
    teacher = torch.nn.functional.one_hot(torch.arange(100) % 2, 2).float()
    task = Agreement(Classification(), "classification")
    found = drop(task, teacher, teacher, teacher)
    assert (found.method, found.points, found.lost) == ("score", 0, 0) and found.bound == pytest.approx(100 * upper_bound(0, 0, 100))
    assert drop(task, teacher, torch.cat([1 - teacher[:4], teacher[4:]]), teacher).lost == 4
    task.right = lambda outputs, labels: torch.zeros(len(labels), dtype=torch.bool)  # of which the metric is no share
    assert drop(task, teacher, teacher, teacher).method == "bootstrap"


class Closeness:
    """Another main metric: one less the mean distance."""

    metric = "closeness"

    def metrics(self, outputs, labels):
        return {"closeness": 1 - (outputs - labels).abs().mean().item()}


def test_the_bound_of_another_metric_is_a_bootstrap_over_examples():
    generator = torch.Generator().manual_seed(0)
    labels, off = torch.rand(400, generator=generator), 0.1 * torch.rand(400, generator=generator)
    found = drop(Closeness(), labels, labels + off, labels)
    assert found.method == "bootstrap" and found.lost is None and found.points == pytest.approx(100 * off.mean().item(), abs=1e-4)
    normal = found.points + norm.ppf(0.95) * 100 * off.std().item() / 20
    assert found.bound == pytest.approx(normal, rel=0.03) and found.bound > found.points
    assert drop(Closeness(), labels, labels + off, labels) == found != drop(Closeness(), labels, labels + off, labels, seed=1)


# Runs

ATTEMPTS = 2
"""Halvings of 10 to 100 % until what is left is narrower than the precision below."""
SHORT = {"evaluations": 4, "finetune_epochs": 1, "agent": "random", "progress": False, **QUICK}
FEW = [word for name, value in QUICK["evaluator"].items() for word in ("--evaluator", f"{name}={value}")]


@pytest.fixture(scope="module", autouse=True)
def quick(one_problem):
    """Few proposals and attempts, one problem, no exports and no latency."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarantee, "FRESH", 2)
        patch.setattr(guarantee, "PRECISION", 0.25)
        patch.setattr(finishing, "export_all", lambda *_, **__: {})
        patch.setattr(CostModel, "compare", lambda self, student, plan: (dict(self.teacher), self.count(student, plan)))
        yield


def noted(patch):
    """The data of every distillation from now on."""
    seen, finetune = [], finishing.finetune

    def call(student, teacher, data, *arguments, **options):
        seen.append(data)
        return finetune(student, teacher, data, *arguments, **options)

    patch.setattr(finishing, "finetune", call)
    return seen


@pytest.fixture
def trainings(monkeypatch):
    return noted(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that may lose four points, and the data of its distillations."""
    with pytest.MonkeyPatch.context() as patch:
        seen = noted(patch)
        return compress(max_accuracy_drop=4, out=tmp_path_factory.mktemp("run") / "a", **SHORT), seen


@pytest.fixture(scope="module")
def run(undisturbed):
    return undisturbed[0]


def test_the_smallest_student_that_holds_is_what_the_run_ends_with(run):
    promise, result = run.result.promise, run.result
    holding = [a for a in promise.attempts if a.holds]
    best = min(holding, key=lambda a: a.usage)
    assert len(promise.attempts) == ATTEMPTS and promise.attempts[0].holds
    assert all(a.holds == (a.drop.points <= 4 + 1e-9) and a.low < a.usage <= a.budget <= a.high for a in promise.attempts)
    assert result.best_trial == best.trial and promise.validation == best.drop and promise.usage == best.usage
    assert run.plan == run.trials[best.trial].plan and result.feasible
    assert result.student.usage["macs"] / result.teacher.usage["macs"] == pytest.approx(best.usage)
    assert promise.bound_holds == (best.drop.bound <= 4) and promise.resource == "macs"
    assert result.evaluations == len(run.trials) == 4 + ATTEMPTS * 2
    assert Result.from_json(json.loads((run.folder / "result.json").read_text())) == result
    assert not (run.folder / "candidates").exists() and not [*run.folder.glob("*.checkpoint")]


def test_test_examples_are_looked_at_once_at_the_end_and_drops_are_of_what_no_choice_saw(undisturbed):
    done, trainings = undisturbed
    promise = done.result.promise
    assert [len(data.test) for data in trainings] == [125] * ATTEMPTS
    assert all(len(data.validation) == 125 and promise.validation.examples == 125 for data in trainings)
    assert promise.test.examples == 539 and promise.test.student == done.result.student.metric_test
    assert promise.test.teacher == done.result.teacher.metric_test
    assert all("metric_test" not in attempt.finetune for attempt in promise.attempts)


@pytest.mark.parametrize("stage", ["proposals", "distillation", "end"])
def test_a_run_that_is_interrupted_goes_on_without_distilling_again(stage, run, trainings, tmp_path, monkeypatch):
    monkeypatch.setattr("compress_env.report.page.write_report", lambda *_, **__: None)
    out = tmp_path / "c"
    left = {"proposals": 3, "distillation": 2, "end": 1}[stage]
    owner, name = {
        "proposals": (guarantee.Recorder, "play"), "distillation": (finishing, "finetune"), "end": (finishing, "export_all"),
    }[stage]  # fmt: skip
    function = getattr(owner, name)

    def dies(*arguments, **options):
        nonlocal left
        left -= stage != "proposals" or len(RunFolder(out).trials()) > 4
        if not left:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    with mock.patch.object(owner, name, dies), pytest.raises(KeyboardInterrupt):
        compress(max_accuracy_drop=4, out=out, **SHORT)
    done = compress(max_accuracy_drop=4, out=out, resume=True, **SHORT)
    assert len(trainings) == ATTEMPTS  # one a budget
    assert done.result.promise == run.result.promise
    assert len(done.trials) == len(run.trials) and all(a.same(b) for a, b in zip(done.trials, run.trials))
    assert all(torch.equal(v, done.student.state_dict()[k]) for k, v in run.student.state_dict().items())
    again = compress(max_accuracy_drop=4, out=out, resume=True, **SHORT)
    assert len(trainings) == ATTEMPTS and again.result == done.result


def test_another_promise_is_not_mixed_into_a_run(run):
    for changed, name in (({"max_accuracy_drop": 2}, "max_accuracy_drop"), ({"evaluations": 8}, "evaluations"),
                          ({"finetune_epochs": 2}, "epochs"), ({"finetuning": {"loss": "dkd"}}, "loss")):  # fmt: skip
        with pytest.raises(UserError, match=f"was made with {name} "):
            compress(**{"max_accuracy_drop": 4, "out": run.folder, "resume": True, **SHORT, **changed})


def test_the_command_says_what_is_promised_and_the_report_has_it(tmp_path, run):
    search = ("search", "--max-accuracy-drop", 4, "--evaluations", 4, "--finetune-epochs", 1, "--agent", "random", *FEW)
    done = call(*search, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    promise = run.result.promise
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[-5:])
    assert told["asked"].startswith("at most 4 points of accuracy lost") and f"{100 * promise.usage:.1f}" in told["asked"]
    assert f"a drop of {promise.validation.points:.2f} points on 125 validation".replace("-", "−") in told["point"]
    assert told["bound"].endswith(": holds") == promise.bound_holds and f"{promise.validation.bound:.2f} points" in told["bound"]
    assert f"points on {promise.test.examples} test examples" in told["test"]
    assert "trying 55.0% of the teacher's MACs (between 10.0% to 100.0%" in done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "Accuracy guaranteed" in page and page.count("<td>55.0") == 1


def test_a_run_with_a_promise_is_not_distilled_into_one_without(run):
    before = (run.folder / "result.json").read_bytes()
    done = call("finetune", "--out", run.folder, "--epochs", 1)
    assert done.exit_code == 2 and "is of a search with --max-accuracy-drop" in done.output
    assert (run.folder / "result.json").read_bytes() == before


def fewest(evaluation, limits):
    """A reward that is the higher the smaller a student is, and nothing else."""
    return -evaluation.usage["macs"]


def test_after_a_budget_that_does_not_hold_only_larger_students_are_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(guarantee, "PRECISION", 0.006)
    with pytest.raises(guarantee.NothingHolds):
        compress(max_accuracy_drop=0, budget={"macs": "2%..4%"}, reward=fewest, out=tmp_path / "a", **SHORT)
    attempts = attempts_in(tmp_path / "a")
    assert [a.budget for a in attempts] == pytest.approx([0.03, 0.035, 0.04]) and [a.low for a in attempts] == [0.02, 0.03, 0.035]
    assert all(a.low < a.usage <= a.budget for a in attempts)


@pytest.mark.parametrize("points", [0])
def test_what_cannot_be_reached_says_what_was_found_and_ends_with_1(points, tmp_path):
    search = ("search", "--max-accuracy-drop", points, "--budget", "macs=2%..4%", "--evaluations", 2, "--finetune-epochs", 1, *FEW)
    done = call(*search, "--agent", "random", "--out", tmp_path)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    (only,) = attempts_in(tmp_path)  # a range this narrow: the largest budget alone
    assert only.budget == 0.04 and not only.holds and only.drop.points > points
    said = done.stderr.splitlines()[-1]
    assert said.startswith("no student between 2.0% and 4.0% of the teacher's MACs was found that loses at most")
    assert f"trial {only.trial} with {only.usage:.1%}, lost {only.drop.points:.2f}" in said
    assert not (tmp_path / "result.json").exists() and "Accuracy guaranteed" in (tmp_path / "report.html").read_text()
    again = call(*search, "--agent", "random", "--out", tmp_path, "--resume")
    assert again.exit_code == 1 and again.stderr.splitlines()[-1] == said and len(attempts_in(tmp_path)) == 1


@pytest.mark.parametrize("wrong, said", [
    ({"max_accuracy_drop": -1}, "from 0 to below 100, got -1"),
    ({"max_accuracy_drop": 100}, "from 0 to below 100, got 100"),
    ({"max_accuracy_drop": math.nan}, "from 0 to below 100, got nan"),
    ({"max_accuracy_drop": True}, "from 0 to below 100, got True"),
    ({"max_accuracy_drop": "0.5%"}, "from 0 to below 100, got '0.5%'"),
    ({"finetune_epochs": 0}, "give finetune_epochs of at least 1"),
    ({"budget": {"macs": 0.5}}, "needs a range"),
    ({"budget": {"macs": "20%..80%", "params": "20%..80%"}}, "it has ranges of macs, params"),
    ({"constraint": "soft"}, "give constraint='hard'"),
    ({"changes": "transform"}, "networks that shrink"),
])  # fmt: skip
def test_nonsense_is_refused_before_any_work(wrong, said, tmp_path):
    with pytest.raises(UserError, match=said):
        compress(**{"max_accuracy_drop": 1, "out": tmp_path / "a", **SHORT, **wrong})
    assert not (tmp_path / "a").exists()
    done = call("search", "--max-accuracy-drop", "-1", "--out", tmp_path / "a")
    assert done.exit_code == 2 and not (tmp_path / "a").exists()


def test_a_fixed_limit_on_another_resource_is_kept(tmp_path):
    done = compress(max_accuracy_drop=99, budget={"params": 0.3, "macs": "30%..50%"}, out=tmp_path / "a", **SHORT)
    assert done.result.promise.resource == "macs" and done.result.budget.keys() == {"params", "macs"}
    share = {name: done.result.student.usage[name] / done.result.teacher.usage[name] for name in ("params", "macs")}
    assert share["params"] <= 0.3 and share["macs"] <= 0.5 and done.result.feasible
