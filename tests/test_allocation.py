"""Sensitivities, the allocation that is made of them, the walk that is relative to it, rewards at each step, and the honest winner."""

from __future__ import annotations

import itertools
import json
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS
from torch import nn

from compress_env.agents.uniform import staged
from compress_env.allocation.sensitivities import LEAST, SHARES, Sensitivities, loss, measure, probes
from compress_env.allocation.solver import Allocation, Allocator
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import InfeasibleBudget, UserError
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.search import search
from compress_env.search.choice import FINALISTS, choose
from compress_env.search.run import find_agent
from compress_env.search.trial import Trial, best_trial, ranked
from compress_env.spec import EnvironmentSpec, ProblemSpec
from compress_env.walk.relative import RelativeWalk

QUICK: dict[str, Any] = {"evaluator": {"calibration_images": 64, "validation_images": 100}}
SPEC = EnvironmentSpec.of_keywords(**QUICK)
BUDGETS = ({"macs": 1.0}, {"params": 1.0}, {"memory": 1.0}, {"macs": 1.0, "params": 0.7}, {"macs": 0.9, "memory": 1.0},
           {"macs": 1.0, "params": 0.8, "memory": 1.1})  # fmt: skip
SHARES_OF_TEACHER = (0.8, 0.5, 0.3, 0.15)


@pytest.fixture(scope="module")
def objective() -> Objective:
    """ResNet-8 on the digits; its sensitivities are measured."""
    return Objective(SPEC)


@pytest.fixture(scope="module")
def chain() -> Objective:
    """VGG-7 on the digits, where all that comes after a block depends on it."""
    return Objective(EnvironmentSpec.of_keywords(teacher="vgg7-digits", **QUICK))


def anew(objective: Objective, **settings: Any) -> Objective:
    """An objective of the same problem with other settings, which knows the sensitivities."""
    spec = EnvironmentSpec.of_keywords(**{**QUICK, **settings})
    return Objective(spec, problem=objective.problem, sensitivities=objective.sensitivities)


def limits_of(objective: Objective, budget: dict[str, float], share: float) -> dict[str, float]:
    teacher = objective.problem.cost_model.teacher
    return {name: min(share * factor, 1.0) * teacher[name] for name, factor in budget.items()}


def plan_of(objective: Objective, allocation: Allocation):
    return objective.problem.graph.canonical(allocation.removed, allocation.widths)


def uniform_plan(objective: Objective, limits: dict[str, float]) -> Allocation:
    plan = staged(objective, np.zeros(1), limits)
    return Allocation(frozenset(plan.removed), objective.problem.graph.widths(plan))


def walked(objective: Objective, limits: dict[str, float], actions: np.ndarray):
    """The finished walk of actions `(steps, 2)`."""
    return stepped(objective.begin(limits), actions)


def far(objective: Objective, limits: dict[str, float], factor: float = 4.0) -> RelativeWalk:
    """A walk whose actions lead farther than those of the environment do."""
    allocator = copy(objective.allocator)
    allocator.factor = lambda reference: factor
    return RelativeWalk(objective.problem, allocator, objective.reference(limits))


def stepped(walk, actions: np.ndarray):
    for keep, sparsity in actions.tolist():
        walk.step(keep, sparsity)
    assert walk.done
    return walk


def alike(a: Allocation, b: Allocation) -> bool:
    return a.removed == b.removed and np.array_equal(a.widths, b.widths)


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
    with pytest.raises(pytest.fail.Exception, match="a student is judged"):  # damaged
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


# The relative walk


@pytest.mark.parametrize("name", ["objective", "chain"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"macs": 0.3}, {"macs": 0.3, "params": 0.24}, {"memory": 0.2}], ids=str)
def test_actions_that_are_all_alike_give_the_allocation_in_every_corner(name, budget, request):
    own: Objective = request.getfixturevalue(name)
    limits = limits_of(own, budget, 1.0)
    reference = own.reference(limits)
    for action in ((0, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0.37, -0.61)):
        walk = walked(own, limits, np.tile(action, (own.steps, 1)))
        assert alike(walk.completion, reference.allocation), action
    assert alike(own.begin(limits).completion, reference.allocation)


@pytest.mark.parametrize("budget", BUDGETS, ids="-".join)
def test_the_plan_is_within_every_limit_at_each_step_whatever_the_actions(budget, objective, chain):
    rng = np.random.default_rng(0)
    for own, share in itertools.product((objective, chain), (0.6, 0.25)):
        limits, seen = limits_of(own, budget, share), set()
        for i in range(8):
            walk = own.begin(limits) if i < 4 else far(own, limits, 8.0)
            while not walk.done:
                assert all(walk.usage[n] <= limit * (1 + 1e-9) for n, limit in limits.items())
                assert own.completed(walk).plan is walk.completion
                walk.step(*np.sign(rng.uniform(-1, 1, 2)) * rng.uniform(0, 1) ** 0.3)
            judged = own.problem.built(plan_of(own, walk.completion))
            assert all(judged.usage[n] <= limit for n, limit in limits.items())
            seen.add(judged.plan)
        assert len(seen) > 1


@pytest.mark.parametrize("name", ["objective", "chain"])
def test_a_target_that_is_to_be_kept_more_is_wider_and_never_much_narrower(name, request):
    own: Objective = request.getfixturevalue(name)
    graph, rng = own.problem.graph, np.random.default_rng(0)
    wider = gone = 0
    for share in (0.5, 0.25):
        limits = limits_of(own, {"macs": 1.0}, share)
        for step, decision in enumerate(own.problem.decisions):
            for _ in range(4):
                actions = rng.uniform(-1, 1, (own.steps, 2))
                kept = []
                for more in (-1, 1):
                    actions[step] = more, -more
                    walk = stepped(far(own, limits), actions)
                    i = graph.group_index.get(decision.target)
                    kept.append(
                        walk.widths[i] * walk.view.alive[i] if decision.shrinks else int(walk.has_block(decision.target))
                    )
                if not decision.shrinks or walk.view.alive[i]:  # what is left of a budget is spent channel by channel
                    assert kept[1] >= 0.9 * kept[0], (decision, kept)
                wider += decision.shrinks and kept[1] > kept[0]
                gone += not decision.shrinks and kept[1] > kept[0]
    assert wider > 20 and (gone > 1 or name == "objective")


def test_an_action_changes_the_plan_for_what_is_decided_and_only_differences_count(objective):
    limits = limits_of(objective, {"macs": 1.0}, 0.4)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.4, 0.4, (objective.steps, 2))
    ends = [stepped(far(objective, limits), actions + more).completion for more in (0, 0.5, [0.3, -0.6])]
    assert alike(ends[0], ends[1]) and alike(ends[0], ends[2]) and not alike(ends[0], objective.begin(limits).completion)
    walk = far(objective, limits)
    before = walk.completion
    while not walk.current.shrinks:
        walk.step(0.0, 0.7)
        assert alike(walk.completion, before) and walk.previous == (0.0, 0.0)
    walk.step(0.7, 1.0)
    i = objective.problem.graph.group_index[objective.problem.decisions[walk.step_index - 1].target]
    assert walk.widths[i] < before.widths[i] and walk.previous == (0.0, 1.0)


def test_relative_actions_need_hard_limits_and_unknown_ones_are_named():
    assert EnvironmentSpec.of_keywords().actions == "relative" and EnvironmentSpec.of_keywords(constraint="soft").actions == "absolute"
    with pytest.raises(UserError, match="relative actions keep every limit, and the limits are soft"):
        EnvironmentSpec.of_keywords(actions="relative", constraint="soft")
    with pytest.raises(UserError, match="did you mean 'absolute'"):
        EnvironmentSpec.of_keywords(actions="absolut")
    spec = EnvironmentSpec.of_keywords(constraint="soft", shaping=False)
    assert EnvironmentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


# Rewards


@pytest.mark.parametrize("settings", [
    {"budget": {"macs": 0.5}}, {"budget": {"macs": 0.3, "params": 0.24}}, {"budget": {"macs": [0.2, 0.8]}},
    {"budget": {"macs": 0.5}, "schedule": "joint"}, {"budget": {"macs": 0.5}, "reward": "n2n"},
    {"budget": {"macs": 0.2}, "constraint": "soft"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("actions", ["relative", "absolute"])
def test_the_rewards_of_an_episode_add_up_to_that_of_its_evaluation(settings, actions):
    if settings.get("constraint") == "soft" and actions == "relative":
        actions = None
    totals = []
    for shaping in (True, False):
        own = Objective(EnvironmentSpec.of_keywords(**{**QUICK, **settings, "actions": actions, "shaping": shaping}))
        env, rng = LayerRemovalEnv.of(own), np.random.default_rng(0)
        judged: list = []
        env.on_judged = judged.append
        env.reset(seed=0)
        for _ in range(3):
            rewards, paid, done = [], 0.0, False
            while not done:
                _, reward, done, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
                rewards.append(reward)
                paid += reward
                if shaping and not done:
                    assert paid == pytest.approx(own.predicted(env.walk), abs=1e-9)
            assert sum(rewards) == pytest.approx(judged[-1].reward, abs=1e-9)
            assert sum(rewards) == pytest.approx(sum(info["reward_terms"].values()), abs=1e-9)
            assert any(rewards[:-1]) == shaping
            totals.append(judged[-1].reward)
            env.reset()
    assert totals[:3] == totals[3:] and len(set(totals)) > 1  # shaping changes no plan


def test_predicted_rewards_tell_good_students_from_bad_ones(objective):
    limits, rng = limits_of(objective, {"macs": 1.0}, 0.3), np.random.default_rng(0)
    walks = [walked(objective, limits, rng.uniform(-1, 1, (objective.steps, 2))) for _ in range(25)]
    walks += [anew(objective, actions="absolute").begin(limits) for _ in range(25)]
    for walk in walks[25:]:
        while not walk.done:
            walk.step(*rng.uniform(-0.3, 1, 2))
    predicted, real = ([f(walk) for walk in walks] for f in (objective.predicted, lambda w: objective.judge(w).reward))
    assert np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(real)))[0, 1] > 0.8


# The honest winner


@pytest.fixture(scope="module")
def searched(objective) -> tuple[Objective, list[Trial]]:
    """A search on few images, which tell its best students badly apart."""
    own = anew(objective, evaluator={"calibration_images": 64, "validation_images": 20}, budget={"macs": 0.4}, actions="absolute")
    return own, search(own, "random", 30, seed=0, progress=False).trials


def test_the_winner_is_the_best_of_ten_on_images_that_the_search_did_not_see(searched):
    own, trials = searched
    everything = Evaluator(own.problem, own.spec.evaluator, every_image=True)
    seen, whole = own.evaluator.validation, own.problem.data.validation
    assert len(seen) == 20 and len(everything.validation) == len(whole) == len(own.final_evaluator.validation) > 200
    finalists = ranked(trials)[:FINALISTS]
    rewards = [own.reward(everything(t.plan), t.limits)[0] for t in finalists]
    trial, evaluation = choose(own, trials)
    assert trial is finalists[int(np.argmax(rewards))] and evaluation == everything(trial.plan)
    assert trial.index != best_trial(trials).index and trial.reward < best_trial(trials).reward
    assert max(rewards) > rewards[0] + 0.001
    with_repeated = [*trials, replace(trials[trial.index], index=len(trials), repeated=True)]
    assert choose(own, with_repeated)[0] is trial


def test_only_ten_students_within_the_budget_are_judged_again(searched, monkeypatch):
    own, trials = searched
    asked = []
    monkeypatch.setattr(own, "_final_evaluator", lambda plan: asked.append(plan) or own.evaluator(plan))
    over = replace(trials[0], index=98, reward=9.0, limits={"macs": 1.0})
    failed = replace(trials[1], index=99, reward=9.0, evaluation=replace(trials[1].evaluation, failed="no"))
    trial, _ = choose(own, [*trials, over, failed])
    assert asked == [t.plan for t in ranked(trials)[:FINALISTS]] and len(set(asked)) == FINALISTS == 10
    assert trial is best_trial(trials)  # judged on the same images, the search's best is the best
    assert choose(own, [over, failed]) is None


def test_a_search_sees_at_most_half_of_the_validation_images(objective):
    data = objective.problem.data
    whole = len(data.validation)
    assert len(data.validation_subset(None)) == len(data.validation_subset(10 * whole)) == whole // 2
    assert torch.equal(data.validation_subset(30).inputs, data.validation.inputs[:30])
    default = Evaluator(objective.problem, EnvironmentSpec.of_keywords().evaluator)
    assert len(default.validation) == whole // 2


# Agents


def test_uniform_gives_the_uniform_student_whatever_the_actions_mean(objective):
    plans = {}
    for actions in ("relative", "absolute"):
        (trial,) = search(anew(objective, budget={"macs": 0.4}, actions=actions), "uniform", 5, progress=False).trials
        plans[actions] = trial.plan
    own = anew(objective, budget={"macs": 0.4}, actions="absolute")
    zero = walked(own, own.budgets(1)[0], np.zeros((own.steps, 2)))
    assert plans["relative"] == plans["absolute"] == plan_of(own, zero)
    shares = own.problem.graph.widths(plans["relative"]) / own.problem.graph.full
    assert not plans["relative"].removed and np.ptp(shares) < 0.07 and shares.max() < 0.75


def test_the_first_student_of_allocation_is_the_allocation_and_others_have_other_blocks(chain):
    own = anew(chain, teacher="vgg7-digits", budget={"macs": 0.2})
    reference = own.reference(own.budgets(1)[0])
    trials = search(own, "allocation", 20, progress=False).trials
    assert trials[0].plan == plan_of(own, reference.allocation)
    assert 1 < len(trials) == len(reference.alternatives) == len({t.plan.removed for t in trials}) and all(t.feasible for t in trials)
    assert [t.plan for t in search(own, "allocation", 2, progress=False).trials] == [t.plan for t in trials[:2]]


def test_stages_tries_thirty_students_of_three_shares_within_the_budget(objective):
    own = anew(objective, budget={"macs": 0.3, "params": 0.35})
    agent = find_agent("stages")(own, 100, 0)
    proposals = [*agent.ask(7), *agent.ask(50)]
    assert len(proposals) == 30 and not agent.ask(1)
    assert proposals[0].plan == staged(own, np.zeros(1), own.budgets(1)[0])
    trials = search(own, "stages", 100, progress=False).trials
    assert [t.plan for t in trials] == [p.plan for p in proposals]
    assert all(t.feasible and not t.plan.removed for t in trials) and len({t.plan for t in trials}) > 20
    assert len(search(own, "stages", 4, progress=False).trials) == 4


def test_a_model_search_begins_with_the_action_0_and_beats_the_allocation(objective):
    own = anew(objective, budget={"macs": 0.2})
    trials = search(own, "model", 30, progress=False).trials
    assert trials[0].plan == plan_of(own, own.begin(own.budgets(1)[0]).completion)
    assert len({t.plan for t in trials}) == 30 and best_trial(trials).reward > trials[0].reward
