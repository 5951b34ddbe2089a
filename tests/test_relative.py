"""The walk that is relative to the allocation, rewards at each step, the honest winner, and the agents that propose plans."""

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
    alike,
    anew,
    far,
    limits_of,
    plan_of,
    stepped,
    walked,
)  # fmt: skip

from compress_env.agents.uniform import staged
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.search import search
from compress_env.search.choice import FINALISTS, Finalists
from compress_env.search.run import find_agent
from compress_env.search.trial import Trial, best_trial, ranked
from compress_env.spec import EnvironmentSpec

pytestmark = pytest.mark.usefixtures("one_problem")


# The relative walk


@pytest.mark.parametrize("name", ["objective", "chain"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"macs": 0.3}, {"macs": 0.3, "params": 0.24}, {"memory": 0.2}], ids=str)
def test_actions_that_are_all_alike_give_the_allocation_in_every_corner(name, budget, request):
    own: Objective = request.getfixturevalue(name)
    limits = limits_of(own, budget, 1.0)
    reference = own.reference(limits)
    for action in ((0, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0.37, -0.61)):
        walk = walked(own, limits, np.tile(action, (own.steps, 1)))
        assert alike(walk.plan, reference.allocation), action
    assert alike(own.begin(limits).plan, reference.allocation)


@pytest.mark.parametrize("budget", BUDGETS, ids="-".join)
def test_the_plan_is_within_every_limit_at_each_step_whatever_the_actions(budget, objective, chain):
    rng = np.random.default_rng(0)
    for own, share in itertools.product((objective, chain), (0.6, 0.25)):
        limits, seen = limits_of(own, budget, share), set()
        for i in range(8):
            walk = own.begin(limits) if i < 4 else far(own, limits, 8.0)
            while not walk.done:
                assert all(walk.usage[n] <= limit * (1 + 1e-9) for n, limit in limits.items())
                assert own.completed(walk).plan is walk.plan
                walk.step(*np.sign(rng.uniform(-1, 1, 2)) * rng.uniform(0, 1) ** 0.3)
            judged = own.problem.built(plan_of(own, walk.plan))
            assert all(judged.usage[n] <= limit for n, limit in limits.items())
            seen.add(judged.plan)
        assert len(seen) > 1


def test_a_decision_finds_one_plan_and_only_the_last_one_passes_images_through_a_network(objective, monkeypatch):
    env, rng, plans, passes = LayerRemovalEnv.of(objective), np.random.default_rng(0), [], []
    limits = limits_of(objective, {"macs": 1.0}, 0.4)
    objective.allocator.factor(objective.reference(limits))  # what is found once for a budget is no decision
    solve = objective.allocator.solve
    monkeypatch.setattr(objective.allocator, "solve", lambda *args: plans.append(len(args[1])) or solve(*args))
    env.reset(options={"limits": limits})
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: passes.append(True))
    try:
        for i in range(objective.steps):
            assert not passes and plans == [1] * i
            env.step(rng.uniform(-1, 1, 2).astype(np.float32))
    finally:
        hook.remove()
    assert passes and plans == [1] * objective.steps


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
    ends = [stepped(far(objective, limits), actions + more).plan for more in (0, 0.5, [0.3, -0.6])]
    assert alike(ends[0], ends[1]) and alike(ends[0], ends[2]) and not alike(ends[0], objective.begin(limits).plan)
    walk = far(objective, limits)
    before = walk.plan
    while not walk.current.shrinks:
        walk.step(0.0, 0.7)
        assert alike(walk.plan, before) and walk.previous == (0.0, 0.0)
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
    best = Finalists(own, trials).ranked()[0]
    trial, evaluation = best.trial, best.evaluation
    assert trial is finalists[int(np.argmax(rewards))] and evaluation == everything(trial.plan)
    assert trial.index != best_trial(trials).index and trial.reward < best_trial(trials).reward
    assert max(rewards) > rewards[0] + 0.001
    with_repeated = [*trials, replace(trials[trial.index], index=len(trials), repeated=True)]
    assert Finalists(own, with_repeated).ranked()[0].trial is trial


def test_only_ten_students_within_the_budget_are_judged_again(searched, monkeypatch):
    own, trials = searched
    asked = []
    monkeypatch.setattr(own, "_final_evaluator", lambda plan: asked.append(plan) or own.evaluator(plan))
    over = replace(trials[0], index=98, reward=9.0, limits={"macs": 1.0})
    failed = replace(trials[1], index=99, reward=9.0, evaluation=replace(trials[1].evaluation, failed="no"))
    trial = Finalists(own, [*trials, over, failed]).ranked()[0].trial
    assert asked == [t.plan for t in ranked(trials)[:FINALISTS]] and len(set(asked)) == FINALISTS == 10
    assert trial is best_trial(trials)  # judged on the same images, the search's best is the best
    assert Finalists(own, [over, failed]).ranked() == []


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
    trials = search(own, "model", 15, progress=False).trials
    assert trials[0].plan == plan_of(own, own.begin(own.budgets(1)[0]).plan)
    assert len({t.plan for t in trials}) == 15 and best_trial(trials).reward > trials[0].reward
