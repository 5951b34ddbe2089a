"""Channels are kept for what they tell the layers behind them."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.errors import InvalidPlan, UserError
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking import RANKINGS, Ranking, magnitude, rank_channels, reconstruction
from compress_env.surgery.ranking.reconstruction import RIDGE, selection_order
from compress_env.surgery.trace import trace
from compress_env.teachers import load_teacher


def test_each_step_takes_the_channel_that_a_regression_gains_most_by():
    rng = np.random.default_rng(0)
    contributions = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    moments = contributions.T @ contributions
    ridge = RIDGE * np.diag(moments).mean() * np.eye(6)
    taken = []
    order, shares = selection_order([moments])
    for i, found in enumerate(order):

        def explained(channels, m=moments):
            covariance = m[channels].sum(1)
            return covariance @ np.linalg.solve((m + ridge)[np.ix_(channels, channels)], covariance)

        best = max(set(range(6)) - set(taken), key=lambda c: explained([*taken, c]))
        assert found == best
        taken.append(found)
        assert shares[i] == pytest.approx(explained(taken) / moments.sum())


def test_of_two_channels_that_say_the_same_one_is_enough_and_silent_ones_go_first():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).numpy()
    columns = np.stack([2 * x[:, 0], 2 * x[:, 0], x[:, 1], 0 * x[:, 2], x[:, 3]], 1)
    order = selection_order([columns.T @ columns])[0].tolist()
    assert order[0] in (0, 1) and set(order[1:3]) == {2, 4}
    assert order[-1] == 3


def test_consumers_count_alike_however_large_their_outputs_are():
    loud, quiet = np.diag([1e6, 0.9e6, 0.0, 0.0]), np.diag([0.0, 0.0, 1.0, 0.1])
    assert selection_order([loud, quiet])[0].tolist() == [2, 0, 1, 3]


def test_a_channel_that_no_consumer_reads_goes_first_although_its_weights_are_large():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.Flatten(), nn.Linear(45, 4)
        ).eval()
    with torch.no_grad():
        teacher[2].weight[:, 3] = 0
        teacher[0].weight[3] *= 100
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(teacher, images[:2])
    assert graph.groups["0"].kept(5)[3]
    whole = build_student(teacher, graph, Plan())
    ranking = reconstruction.rank(whole, graph, images)
    ranked = graph.ranked(ranking)
    assert not ranked.groups["0"].kept(5)[3] and graph.groups["0"].kept(5)[3]
    assert list(ranking.orders) == ["0", "2"] and reconstruction.rank(whole, ranked, images).id == ranking.id


def test_a_ranking_is_a_value_that_the_graph_it_is_applied_to_does_not_change_with():
    teacher = load_teacher("resnet8-digits").module
    graph = trace(teacher, torch.zeros(2, 1, 8, 8))
    name, size = "conv1", graph.groups["conv1"].size
    order = np.random.default_rng(0).permutation(size)
    ranking = Ranking("mine", {name: order})
    ranked = graph.ranked(ranking)
    assert np.flatnonzero(ranked.groups[name].kept(5)).tolist() == sorted(order[:5].tolist())
    others = [g for g in graph.groups if g != name]
    assert others and all(ranked.groups[g] is graph.groups[g] for g in others)
    assert ranked.costs is graph.costs and ranked.view(frozenset()) is not graph.view(frozenset())
    assert ranking.id == Ranking("mine", {name: order.copy()}).id and len(ranking.id) == 16
    assert len({ranking.id, Ranking("other", {name: order}).id, Ranking("mine", {name: order[::-1]}).id}) == 3
    with pytest.raises(InvalidPlan, match="'conv1'"):
        graph.ranked(Ranking("short", {name: order[:-1]}))
    with pytest.raises(FrozenInstanceError):
        graph.groups = {}
    for values in (ranked.full, ranked.floor, ranked.groups[name].importance, graph.groups[name].importance):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


def test_images_are_asked_for_by_rankings_that_look_at_them_only():
    teacher = load_teacher("resnet8-digits").module
    graph = trace(teacher, torch.zeros(2, 1, 8, 8))
    whole = build_student(teacher, graph, Plan())

    def images():
        raise RuntimeError("asked for")

    ranked = graph.ranked(rank_channels("magnitude", whole, graph, images))
    for group in graph.groups.values():
        for width in (1, group.size // 2):
            assert np.array_equal(ranked.groups[group.name].kept(width), group.kept(width))
    assert RANKINGS.get("magnitude") is magnitude
    with pytest.raises(RuntimeError, match="asked for"):
        rank_channels("reconstruction", whole, graph, images)
    with pytest.raises(UserError, match="looks at images"):
        reconstruction.rank(whole, graph, None)


@pytest.mark.parametrize("share", [0.3, 0.2])
def test_students_of_the_digits_lie_nearer_to_the_teacher_than_with_the_largest_weights(share):
    found = []
    for ranking in ("magnitude", "reconstruction"):
        problem = Problem.build(ProblemSpec("resnet8-digits", ranking=ranking))
        plan = Plan.of((), {g.name: int(share * g.size) for g in problem.graph.groups.values()})
        found.append(Evaluator(problem, EvaluatorSettings())(plan).kl)
    assert found[1] < found[0]
