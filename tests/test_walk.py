"""Budgets that hold: random episodes at random budgets, counted on students that are really built."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from networks import NETWORKS, vgg

from compress_env.data import Split, make_data
from compress_env.decisions import RemoveBlock, ShrinkGroup, decisions
from compress_env.errors import InfeasibleBudget, NothingToDecide, UserError
from compress_env.problem import Problem
from compress_env.resources import RESOURCES
from compress_env.resources.budget import parse_budget, parse_limit
from compress_env.spec import SCHEDULES, ProblemSpec
from compress_env.walk.walk import Walk

_PROBLEMS: dict = {}


def problem_of(name: str, schedule: str = "two-step", **settings) -> Problem:
    """Without data: channels are ranked by their weights."""
    key = name, schedule, *settings
    if key not in _PROBLEMS:
        factory, shape = NETWORKS[name]
        spec = ProblemSpec(factory().eval(), input_shape=shape, ranking="magnitude", schedule=schedule, **settings)
        _PROBLEMS[key] = Problem.build(spec)
    return _PROBLEMS[key]


def finish(walk: Walk):
    """The plan, its student and the usage counted on it."""
    return walk.problem.finish(walk.removed, walk.widths, walk.limits if walk.hard else None)


def random_limits(problem: Problem, rng: np.random.Generator) -> dict[str, float]:
    """Limits on some of the resources, anywhere between the smallest reachable usage and the teacher's."""
    names = [n for n in ("macs", "params", "memory") if rng.random() < 0.6] or ["macs"]
    smallest = problem.completions[0].usage
    return {n: smallest[n] + rng.random() ** 2 * (problem.cost_model.teacher[n] - smallest[n]) for n in names}


def play(episode: Walk, rng: np.random.Generator) -> None:
    bias = rng.uniform(-1, 1, 2)  # some episodes want to keep everything, some nothing
    while not episode.done:
        episode.step(*np.clip(rng.uniform(-1, 1, 2) + bias, -1, 1))


@pytest.mark.parametrize("name, episodes", [("resnet8-digits", 300), ("resnet20-cifar10", 100)])
def test_every_student_of_random_episodes_is_within_every_limit(name, episodes):
    problem = problem_of(name)
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        limits = random_limits(problem, rng)
        episode = Walk(problem, limits, hard=True)
        play(episode, rng)
        plan, student, usage = finish(episode)
        assert all(usage[n] <= limit for n, limit in limits.items())
        assert usage["params"] == sum(p.numel() for p in student.parameters())
        # usage is counted by torch.utils.flop_counter on the student; what the actions were clamped with is our own formula
        assert usage == problem.cost_model.predict_all(frozenset(plan.removed), problem.graph.widths(plan))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["vgg-bn", "functional"])
def test_other_schedules_and_chains_keep_their_limits_too(name, schedule):
    problem = problem_of(name, schedule)
    rng = np.random.default_rng(0)
    for _ in range(25):
        limits = random_limits(problem, rng)
        episode = Walk(problem, limits, hard=True)
        play(episode, rng)
        plan, _, usage = finish(episode)
        assert all(usage[n] <= limit for n, limit in limits.items())
        assert schedule != "removal" or not plan.widths
        assert schedule != "shrink" or not plan.removed


def test_a_latency_budget_is_measured_on_the_student_and_met():
    problem = problem_of("resnet8-digits", resources=("latency",))
    rng = np.random.default_rng(0)
    teacher = problem.cost_model.teacher["latency"]
    limits = {"latency": 0.55 * teacher}
    episode = Walk(problem, limits, hard=True)
    while not episode.done:
        episode.step(1.0, rng.uniform(-1, 0.2))
    plan, student, usage = finish(episode)
    assert 0 < usage["latency"] <= limits["latency"]
    assert usage["latency"] == problem.cost_model.count(student, plan)["latency"]  # measured once a plan


def test_a_tighter_budget_gives_smaller_students_under_the_same_actions():
    problem = problem_of("resnet20-cifar10")
    used = []
    for share in (0.2, 0.4, 0.6, 0.8):
        episode = Walk(problem, {"macs": share * problem.cost_model.teacher["macs"]}, hard=True)
        while not episode.done:
            episode.step(0, 0)
        used.append(finish(episode)[2]["macs"] / problem.cost_model.teacher["macs"])
    assert used == sorted(used)
    assert all(share - 0.05 < u <= share for share, u in zip((0.2, 0.4, 0.6, 0.8), used))  # and spends what it has


def test_action_0_is_the_uniform_student_and_the_ends_keep_all_or_little():
    problem = problem_of("resnet20-cifar10", "shrink")
    graph = problem.graph
    generous = {"macs": problem.cost_model.teacher["macs"]}
    widest, narrowest = (Walk(problem, generous, hard=True) for _ in range(2))
    while not widest.done:
        widest.step(0, -1)
        narrowest.step(0, 1)
    assert (widest.widths == graph.full).all() and (narrowest.widths == graph.floor).all()
    even = Walk(problem, {"macs": 0.5 * problem.cost_model.teacher["macs"]}, hard=True)
    while not even.done:
        even.step(0, 0)
    shares = even.widths / graph.full
    assert shares.max() - shares.min() < 0.12


@pytest.mark.parametrize("resource", ["macs", "params", "memory"])
def test_a_budget_that_a_student_meets_exactly_is_met_by_it(resource):
    problem = problem_of("resnet8-digits")
    whole, cost_model = problem.cost_model.teacher[resource], problem.cost_model
    for widths in problem.uniform_columns.T:
        used = cost_model.predict(resource, problem.graph.view(frozenset()), widths)
        limits = {resource: parse_limit(used / whole, RESOURCES.get(resource)).absolute(whole)}
        assert problem.finish(frozenset(), widths, limits).plan == problem.graph.canonical(frozenset(), widths)


def test_an_episode_reports_the_action_that_was_executed():
    problem = problem_of("resnet20-cifar10")
    episode = Walk(problem, {"macs": problem.smallest("macs") * 1.2}, hard=True)
    kept = []
    while not episode.current.shrinks:
        episode.step(1, 0)
        kept.append(episode.previous[0])
    assert -1.0 in kept  # the clamp overruled a wish to keep everything
    assert len(episode.removed) == kept.count(-1.0)


def test_soft_limits_leave_actions_alone():
    problem = problem_of("resnet20-cifar10")
    episode = Walk(problem, {"macs": 0.1 * problem.cost_model.teacher["macs"]}, hard=False)
    while not episode.done:
        episode.step(1, -1)
    plan, _, usage = finish(episode)
    assert not plan.removed and not plan.widths and usage["macs"] == problem.cost_model.teacher["macs"]


def test_joint_walks_in_the_order_of_layers_and_two_step_removes_first():
    graph = problem_of("resnet20-cifar10").graph
    kinds = [type(d) for d in decisions(graph, "two-step")]
    assert kinds == [RemoveBlock] * 9 + [ShrinkGroup] * 12
    joint = decisions(graph, "joint")
    assert sorted(joint, key=str) == sorted(decisions(graph, "two-step"), key=str)
    assert [d.target for d in joint[:3]] == ["conv1", "stages.0.0", "stages.0.0.conv1"]


def test_a_budget_out_of_reach_names_the_smallest_reachable_usage():
    with pytest.raises(InfeasibleBudget, match=r"macs of .* smallest reachable is 1,380 \(0\.2%\)"):
        gym.make("LayerRemoval-v0", budget={"macs": 0.001})
    with pytest.raises(ValueError, match="smallest reachable"):
        gym.make("LayerRemoval-v0", budget={"params": 100, "macs": 0.5})


def test_a_teacher_with_nothing_to_decide_is_refused():
    data = make_data(
        "one", Split(torch.randn(40, 4), torch.arange(40) % 2), Split(torch.randn(4, 4), torch.arange(4) % 2)
    )
    with pytest.raises(NothingToDecide, match="nothing to decide"):
        gym.make("LayerRemoval-v0", teacher=torch.nn.Sequential(torch.nn.Linear(4, 2)).eval(), data=data)


@pytest.mark.parametrize(
    ("text", "value", "share"),
    [(0.5, 0.5, True), (1, 1, True), (2, 2, False), ("50%", 0.5, True), ("0.25", 0.25, True), ("300K", 3e5, False),
     ("20M", 2e7, False), ("2.5ms", 2.5, False), ("1MiB", 2**20, False), ("1.5e6", 1.5e6, False), ("0.8ms", 0.8, False)],
)  # fmt: skip
def test_limits_are_read_as_shares_or_absolute(text, value, share):
    resource = "latency" if "ms" in str(text) else "memory" if "B" in str(text) else "macs"
    limit = parse_limit(text, RESOURCES.get(resource))
    assert limit.value == pytest.approx(value) and limit.share is share


@pytest.mark.parametrize("text", ["", "lots", "5 parsecs", "-1", 0, "nan", float("nan"), float("inf"), "2ms", "1KiB"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UserError, match="budget"):
        parse_limit(text, RESOURCES.get("macs"))


def test_budgets_name_unknown_resources_and_bad_ranges():
    with pytest.raises(UserError, match="did you mean 'macs'"):
        parse_budget({"mac": 0.5})
    with pytest.raises(UserError, match="range"):
        parse_budget({"macs": [0.8, 0.4]})
    with pytest.raises(UserError, match="empty"):
        parse_budget({})
    low, high = parse_budget({"macs": ["30%", 0.6]})["macs"]
    assert (low.value, high.value) == (0.3, 0.6)


def test_blocks_of_wide_chains_are_counted_right_when_all_are_removed():
    spec = ProblemSpec(vgg().eval(), input_shape=(3, 8, 8), ranking="magnitude", schedule="removal")
    problem = Problem.build(spec)
    graph = problem.graph
    plan = graph.canonical(frozenset(graph.blocks), graph.full)
    assert set(plan.removed) == set(graph.blocks)
    assert problem.completions[0].usage["macs"] == graph.view(frozenset(plan.removed)).macs(graph.full)
