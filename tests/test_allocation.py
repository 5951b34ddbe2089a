"""Sensitivities, and the allocation that is made of them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from allocations import (
    BUDGETS,
    QUICK,
    SHARES_OF_TEACHER,
    SPEC,
    alike,
    anew,
    limits_of,
    plan_of,
    uniform_plan,
)  # fmt: skip
from networks import NETWORKS
from torch import nn

from compress_env.allocation.allocator import Allocator
from compress_env.allocation.sensitivities import LEAST, SHARES, Sensitivities, loss, measure, probes
from compress_env.allocation.solver import Allocation
from compress_env.errors import InfeasibleBudget
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources.base import amount
from compress_env.spec import EnvironmentSpec, ProblemSpec

# Sensitivities


def test_each_probe_changes_one_decision_and_every_decision_is_probed(objective, chain):
    for problem in (objective.problem, chain.problem):
        plans, graph = probes(problem), problem.graph
        changed = [(*plan.removed, *(name for name, _ in plan.widths)) for plan in plans]
        assert all(len(names) == 1 for names in changed) and len(set(plans)) == len(plans)
        assert {name for (name,) in changed} == {d.target for d in problem.decisions}
        for name, group in graph.groups.items():
            widths = {dict(plan.widths)[name] for plan in plans if name in dict(plan.widths)}
            assert group.floor in widths and max(widths) < group.size and 3 < len(widths) <= len(SHARES) + 1


def test_a_sensitivity_is_the_kl_of_the_student_that_differs_in_one_decision(objective):
    graph, found = objective.problem.graph, objective.sensitivities
    judge = Evaluator(objective.problem, SPEC.evaluator)
    plans = probes(objective.problem)
    assert found.evaluations == len(plans) and found.blocks.keys() == set(graph.blocks) and found.groups.keys() == set(graph.groups)
    for plan in plans:
        measured = found.blocks[plan.removed[0]] if plan.removed else dict(found.groups[plan.widths[0][0]])[plan.widths[0][1]]
        assert measured == judge(plan).kl > 0
    assert sum(map(len, found.groups.values())) + len(found.blocks) == len(plans)


def test_curves_never_rise_with_the_width_and_are_as_measured_where_that_was_done(objective, chain):
    for own in (objective, chain):
        for name, group in own.problem.graph.groups.items():
            curve, pairs = own.sensitivities.curve(name, group.size), own.sensitivities.groups[name]
            assert curve.shape == (group.size + 1,) and curve[-1] == 0 and (np.diff(curve) <= 1e-12).all()
            assert curve[1] > 3 * curve[-2]
            for width, kl in pairs:
                assert curve[width] == pytest.approx(max([kl, LEAST, *(more for wider, more in pairs if wider > width)]))


def test_a_curve_is_made_monotone_and_goes_on_below_and_above_what_was_measured():
    curve = Sensitivities({}, {"a": ((2, 0.5), (4, 0.7), (8, 0.07))}, 3, 0.0).curve("a", 16)
    assert curve[[2, 4, 8]] == pytest.approx([0.7, 0.7, 0.07])
    assert 0.07 < curve[6] < 0.7 and curve[12] == pytest.approx(0.035) and curve[16] == 0
    steep = Sensitivities({}, {"a": ((4, 0.4), (8, 0.1))}, 2, 0.0).curve("a", 16)
    assert steep[:3] == pytest.approx([6.4, 6.4, 1.6])  # a power of the width
    assert not Sensitivities({}, {}, 0, 0.0).curve("a", 16).any()


def test_sensitivities_survive_json(objective):
    found = objective.sensitivities
    again = Sensitivities.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found and again.seconds == found.seconds
    assert Sensitivities.from_json({**found.to_json(), "seconds": 1e6}) == found


def test_the_students_of_the_sensitivities_are_new_to_a_search_but_what_was_known_stays_known(objective):
    own = Objective(SPEC, problem=objective.problem)
    first, *others = probes(own.problem)
    own.evaluator(first)
    assert measure(own.problem, own.evaluator, None) == objective.sensitivities
    assert own.evaluator.known(first) and not any(own.evaluator.known(plan) for plan in others)
    graph, generous = own.problem.graph, dict(own.problem.cost_model.teacher)
    judged = [own.judge_plan(frozenset(p.removed), graph.widths(p), generous) for p in (first, others[0], others[0])]
    assert [j.plan for j in judged] == [first, others[0], others[0]]
    assert [j.repeated for j in judged] == [True, False, True]


def test_a_student_that_fails_counts_as_a_large_loss_and_one_without_kl_by_its_metric(objective):
    evaluation = Evaluator(objective.problem, SPEC.evaluator)(probes(objective.problem)[0])
    half = {name: value / 2 for name, value in evaluation.teacher_metrics.items()}
    assert loss(replace(evaluation, kl=None, metrics=half)) == pytest.approx(0.5)
    assert loss(replace(evaluation, failed="it does not run")) > 100 * loss(evaluation) > 0


def test_the_second_objective_of_a_machine_finds_the_sensitivities_kept(objective, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    first = Objective(SPEC, problem=objective.problem).sensitivities
    (file,) = (tmp_path / "sensitivities").iterdir()
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: pytest.fail("a student is judged"))
    again = Objective(SPEC, problem=objective.problem).sensitivities
    assert again == first == objective.sensitivities and again.seconds == first.seconds
    other = EnvironmentSpec.of_keywords(evaluator={**QUICK["evaluator"], "calibration_images": 60})
    with pytest.raises(pytest.fail.Exception, match="a student is judged"):  # other settings, other numbers
        _ = Objective(other, problem=objective.problem).sensitivities
    file.write_text('{"blocks": 1')
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(pytest.fail.Exception, match="a student is judged"):
        _ = Objective(SPEC, problem=objective.problem).sensitivities


# The allocation


@pytest.mark.parametrize("share", SHARES_OF_TEACHER)
@pytest.mark.parametrize("budget", BUDGETS, ids="-".join)
@pytest.mark.parametrize("name", ["objective", "chain"])
def test_the_allocation_is_within_every_limit_uses_it_and_is_predicted_to_be_better_than_the_uniform_student(
    name, budget, share, request
):
    own: Objective = request.getfixturevalue(name)
    limits = limits_of(own, budget, share)
    reference = own.reference(limits)
    allocation, score = reference.allocation, own.allocator.score
    built = own.problem.built(plan_of(own, allocation))
    assert all(built.usage[n] <= limit for n, limit in limits.items())
    assert built.usage["params"] == sum(p.numel() for p in built.student.parameters())
    assert max(built.usage[n] / limit for n, limit in limits.items()) > 0.9
    assert score(allocation) > score(uniform_plan(own, limits))
    assert reference.alternatives[0] is allocation
    for other in reference.alternatives[1:]:
        used = own.problem.built(plan_of(own, other)).usage
        assert all(used[n] <= limit for n, limit in limits.items()) and score(other) <= score(allocation)


def test_the_allocation_is_really_better_than_the_uniform_student(objective, chain):
    for own in (objective, chain):
        for share in (0.5, 0.25):
            limits = limits_of(own, {"macs": 1.0}, share)
            uniform, allocation = uniform_plan(own, limits), own.reference(limits).allocation
            rewards = [own.judge_plan(p.removed, p.widths, limits).reward for p in (uniform, allocation)]
            assert rewards[1] > rewards[0] + (0.001 if share == 0.5 else 0.05)


def test_limits_that_cannot_be_met_have_no_allocation_unless_they_are_soft(objective):
    limits = limits_of(objective, {"macs": 1.0}, 0.0005)
    with pytest.raises(InfeasibleBudget):
        objective.reference(limits)
    soft = anew(objective, constraint="soft", budget={"macs": 0.0005}).reference(limits).allocation
    assert objective.problem.cost_model.predict_all(soft.removed, soft.widths)["macs"] == objective.problem.smallest("macs")


def test_of_a_prediction_above_what_was_measured_the_prediction_is_what_can_be_asked_for(objective, monkeypatch):
    problem = objective.problem
    needs = {**problem.completions[0].usage, "macs": 1.1 * problem.completions[0].usage["macs"]}
    monkeypatch.setattr(problem, "completions", [replace(problem.completions[0], needs=needs)])
    with pytest.raises(InfeasibleBudget, match=f"the smallest reachable is {amount(needs['macs'])}"):
        problem.feasible_completion({"macs": 0.99 * needs["macs"]})
    assert problem.feasible_completion({"macs": needs["macs"]}) is problem.completions[0]
    assert anew(objective, constraint="soft").reference({"macs": 1.0}).limits["macs"] == needs["macs"]


def made_up(problem: Problem, rng: np.random.Generator) -> Sensitivities:
    """Losses of a few widths of each group and of each block, drawn over two orders of magnitude."""
    groups = {}
    for name, group in problem.graph.groups.items():
        widths = sorted({group.floor, max(group.size // 4, group.floor), group.size // 2})
        groups[name] = tuple(zip(widths, sorted((10 ** rng.uniform(-3, -0.5, len(widths))).tolist(), reverse=True)))
    return Sensitivities({name: float(10 ** rng.uniform(-2, 0)) for name in problem.graph.blocks}, groups, 0, 0.0)


def best_score(allocator: Allocator, limits: dict[str, float]) -> float:
    """The highest predicted score of all plans within limits, each of which is looked at."""
    problem, graph = allocator.problem, allocator.graph
    blocks = sorted(problem.removable)
    every = [np.arange(g.floor, g.size + 1) if may else [g.size] for g, may in zip(graph.groups.values(), problem.shrinkable)]
    columns = np.array(list(itertools.product(*every))).T
    best = 0.0
    for removed in (frozenset(c) for n in range(len(blocks) + 1) for c in itertools.combinations(blocks, n)):
        view = graph.view(removed)
        used = {n: problem.cost_model.predict_many(n, view, columns) for n in limits}
        fitting = np.all([used[n] <= limit for n, limit in limits.items()], axis=0)
        best = max([best, *(allocator.score(Allocation(removed, widths)) for widths in columns[:, fitting].T)])
    return best


@pytest.mark.parametrize("name", ["functional", "mlp"])
def test_no_plan_of_all_that_a_tiny_teacher_has_is_much_better_than_the_allocation(name):
    factory, shape = NETWORKS[name]
    problem = Problem.build(ProblemSpec(factory().eval(), input_shape=shape, ranking="magnitude"))
    rng, lost = np.random.default_rng(0), []
    for _ in range(6):
        allocator = Allocator(problem, made_up(problem, rng))
        share = rng.uniform(0.3, 0.8)
        limits = {n: share * problem.cost_model.teacher[n] for n in (("macs",), ("params",), ("macs", "params"))[rng.integers(3)]}
        if all(problem.smallest(n) < limit for n, limit in limits.items()):
            best = best_score(allocator, limits)
            lost.append(best - allocator.score(allocator.reference(limits).allocation))
    assert len(lost) > 3 and min(lost) > -1e-9
    assert max(lost) < 2e-3


@pytest.mark.parametrize("budget", [{"macs": 0.75}, {"params": 0.4}, {"macs": 0.85, "memory": 0.5}], ids="-".join)
def test_no_widths_of_two_groups_of_a_real_teacher_are_better_than_the_allocation(budget, objective):
    groups = ("stages.2.0.conv1", "stages.2.0.conv2")
    own = Objective(EnvironmentSpec.of_keywords(schedule="shrink", shrinkable=("stages.2.*",), budget=budget, **QUICK))
    limits = own.budgets(1)[0]
    allocation = own.reference(limits).allocation
    full = own.problem.graph.full
    assert [n for n, w, size in zip(own.problem.graph.groups, allocation.widths, full) if w < size] == list(groups)
    assert own.allocator.score(allocation) > best_score(own.allocator, limits) - 2e-3


@pytest.mark.parametrize("budget", BUDGETS, ids="-".join)
@pytest.mark.parametrize("name", ["objective", "chain"])
def test_plans_that_are_found_together_are_those_found_alone(name, budget, request):
    own: Objective = request.getfixturevalue(name)
    allocator, rng = own.allocator, np.random.default_rng(0)
    weights = 4.0 ** rng.uniform(-2, 2, (40, own.steps))
    weights[0] = 1
    for share in SHARES_OF_TEACHER[:3]:
        reference = own.reference(limits_of(own, budget, share))
        together = allocator.solve(reference, weights)
        assert alike(together[0], reference.allocation)
        assert all(alike(plan, *allocator.solve(reference, each[None])) for plan, each in zip(together, weights))
        assert len({plan_of(own, plan) for plan in together}) > 5
        assert all(used <= limit for plan in together for name, limit in reference.limits.items()
                   for used in [own.problem.cost_model.predict_all(plan.removed, plan.widths)[name]])  # fmt: skip


class Nested(nn.Module):
    """A residual branch that has another one within it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.inner, self.last = (nn.Conv2d(n, 8, 3, padding=1) for n in (1, 8, 8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.first(x).relu()
        y = y + self.inner(y).relu()
        return self.head((x + self.last(y)).relu().mean((2, 3)))


def test_what_went_with_a_removed_block_counts_once():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        problem = Problem.build(ProblemSpec(Nested().eval(), input_shape=(1, 8, 8), ranking="magnitude"))
    graph, found = problem.graph, made_up(problem, np.random.default_rng(0))
    allocator = Allocator(problem, found)
    views = {name: graph.view(frozenset([name])) for name in graph.blocks}
    ((outer, inner),) = [(a, b) for a in graph.blocks for b in graph.blocks if a != b and not views[a].has(graph.blocks[b].node)]
    gone, narrow = ~views[outer].alive, graph.full.copy()
    assert gone.any() and not gone.all()
    narrow[gone] = graph.floor[gone]
    assert allocator.kl(Allocation(frozenset(), graph.full)) == 0
    for removed in ({outer}, {outer, inner}):
        for widths in (graph.full, narrow):
            assert allocator.kl(Allocation(frozenset(removed), widths)) == found.blocks[outer]
    lost = sum(found.curve(n, g.size)[g.floor] for (n, g), went in zip(graph.groups.items(), gone) if went)
    assert allocator.kl(Allocation(frozenset(), narrow)) == pytest.approx(lost)
    left = sum(found.curve(n, g.size)[g.floor] for n, g in graph.groups.items()) - lost
    assert allocator.kl(Allocation(frozenset([outer]), graph.floor)) == pytest.approx(found.blocks[outer] + left)
