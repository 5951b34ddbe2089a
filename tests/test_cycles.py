"""A student that shrinks to its plan in cycles: nested plans, the same student as without training, and an end that resumes."""

from __future__ import annotations

import pytest
import torch
from test_finish import SPEC, quick

from compress_env import cycles, finishing
from compress_env.api import finish, run_search
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.files import read_json
from compress_env.problem import Problem
from compress_env.spec import EnvironmentSpec, EvaluatorSettings, FinetuneSpec, ProblemSpec, SearchSpec
from compress_env.surgery.plan import Plan


@pytest.fixture(scope="module")
def problem():
    return Problem.build(ProblemSpec(teacher="resnet8-digits"))


def small(problem: Problem) -> Plan:
    """A block with a projection goes, after which a group is named after another layer; all else shrinks to a third."""
    graph = problem.graph
    return graph.canonical(frozenset({"stages.2.0"}), graph.allowed(graph.full * 0.35))


def test_plans_on_the_way_are_nested_and_shrink_by_one_factor(problem):
    plan, graph = small(problem), problem.graph
    found = cycles.steps(problem, plan, 3)
    widths = [graph.full, *(graph.widths(each) for each in found)]
    assert found[-1] == plan and all(each.removed == plan.removed for each in found)
    assert all((a >= b).all() and (a > b).any() for a, b in zip(widths, widths[1:]))
    macs = [problem.built(each).usage["macs"] / problem.cost_model.teacher["macs"] for each in found]
    assert macs[1] / macs[0] == pytest.approx(macs[2] / macs[1], rel=0.25)
    assert cycles.steps(problem, plan, 1) == [plan] and cycles.shares(10, 3) == [3, 3, 4]


def test_a_student_of_a_student_has_the_plans_layout_and_follows_its_larger_one(problem):
    evaluator = Evaluator(problem, EvaluatorSettings())
    plan = small(problem)
    cycles.check(problem, plan, 2)
    first, last = cycles.steps(problem, plan, 2)
    larger = evaluator.prepared(first)
    before = {name: value.clone() for name, value in larger.state_dict().items()}
    found = cycles.shrunk(problem, larger, last, 256)
    expected = problem.student(plan).state_dict()
    assert {n: v.shape for n, v in found.state_dict().items()} == {n: v.shape for n, v in expected.items()}
    assert all(torch.equal(before[name], value) for name, value in larger.state_dict().items())
    x = problem.data.calibration(256)

    def distance(student):
        return (student(x) - larger(x)).square().mean().item()

    assert distance(found) < 0.5 * distance(problem.student(plan))


def test_a_network_whose_students_compute_something_else_is_refused(problem, monkeypatch):
    monkeypatch.setattr(cycles, "_step", lambda problem, graph, plan: Plan())
    with pytest.raises(UserError, match="cannot be cut a second time; leave --cycles at 1"):
        cycles.check(problem, small(problem), 2)


def test_distillation_in_cycles_resumes_and_ends_with_the_plan(tmp_path, monkeypatch):
    quick(monkeypatch)
    folder, objective = run_search(SPEC, SearchSpec("random", {}, 4, 0), tmp_path / "run", progress=False)
    real, calls = finishing.finetune, []

    def interrupted(*args, **kwargs):
        calls.append(kwargs["checkpoint"].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(finishing, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(folder, 3, objective=objective, progress=False, cycles=2)
    trained = []
    monkeypatch.setattr(finishing, "finetune", lambda *a, **k: trained.append(real(*a, **k)) or trained[-1])
    found = finish(folder, 3, objective=objective, progress=False, cycles=2)
    assert len(set(calls)) == 2 and [done.epochs for done in trained] == [1, 2]
    assert found.finetuned.before == (trained[0].history,) and found.result.recipe["cycles"] == 2
    assert found.result.feasible and not list(folder.path.glob("*.checkpoint"))
    again = finish(folder, 3, objective=objective, progress=False, cycles=2)
    assert len(trained) == 2 and again.finetuned == found.finetuned
    whole = read_json(folder.path / "result.json")
    finish(folder, 3, objective=objective, progress=False)
    assert len(trained) == 3 and read_json(folder.path / "result.json") != whole


def test_few_examples_are_those_of_the_calibration_and_nothing_else_is_learned_from(problem, tmp_path, monkeypatch):
    data = problem.data
    few = data.few(16)
    seen = {each.numpy().tobytes() for each in few.train.inputs}
    assert seen == {each.numpy().tobytes() for each in data.train.inputs[data._order(0)[:16]]} and len(few.train) >= 12_800
    assert torch.equal(data.prepare(few.train.inputs[:16]), data.calibration(16)) and data.few(None) is data
    quick(monkeypatch)
    folder, objective = run_search(SPEC, SearchSpec("random", {}, 4, 0), tmp_path / "run", progress=False)
    real, learned = finishing.finetune, []
    monkeypatch.setattr(finishing, "finetune", lambda *a, **k: learned.append(a[2].train) or real(*a, **k))
    found = finish(folder, 1, objective=objective, progress=False, examples=8, loss="mimic")
    assert len({each.numpy().tobytes() for each in learned[0].inputs}) == 8 and found.result.recipe["examples"] == 8


def test_cycles_of_a_network_that_grows_are_refused_before_the_search():
    with pytest.raises(UserError, match="a student that grows has one cycle"):
        finishing.check_finetuning(EnvironmentSpec.of_keywords(changes="grow"), FinetuneSpec(2, cycles=2))


def test_cycles_without_an_epoch_each_are_refused():
    with pytest.raises(UserError, match="3 cycles need an epoch each, and there are 2"):
        FinetuneSpec(2, cycles=3)
