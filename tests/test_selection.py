"""Channels are kept for what they tell the layers behind them."""

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.data import load_data
from compress_env.distill.evaluator import Evaluator, EvaluatorSettings
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking.reconstruction import RIDGE, rank_by_reconstruction, selection_order
from compress_env.surgery.redundancy import block_redundancy
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
    rank_by_reconstruction(build_student(teacher, graph, Plan()), graph, images)
    assert not graph.groups["0"].kept(5)[3]
    order = np.argsort(-graph.groups["2"].importance)
    rank_by_reconstruction(build_student(teacher, graph, Plan()), graph, images)
    assert order.tolist() == np.argsort(-graph.groups["2"].importance).tolist()


@pytest.mark.parametrize("share", [0.3, 0.2])
def test_students_of_the_digits_lie_nearer_to_the_teacher_than_with_the_largest_weights(share):
    teacher, data = load_teacher("resnet8-digits").module, load_data("digits")
    found = []
    for by_images in (False, True):
        graph = trace(teacher, data.calibration(2))
        whole = build_student(teacher, graph, Plan())
        if by_images:
            rank_by_reconstruction(whole, graph, data.calibration(512))
        plan = Plan.of((), {g.name: int(share * g.size) for g in graph.groups.values()})
        found.append(
            Evaluator(whole, graph, data, EvaluatorSettings())(build_student(teacher, graph, plan), plan).likeness
        )
    assert found[1] > found[0]


class Block(nn.Module):
    """Adds `strength` times a convolution of its input to it."""

    def __init__(self, channels: int, strength: float):
        super().__init__()
        self.conv, self.strength = nn.Conv2d(channels, channels, 3, padding=1), strength

    def forward(self, x):
        return x + self.strength * self.conv(x).relu()


def test_what_a_removal_costs_is_told_by_what_goes_round_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(
            nn.Conv2d(3, 8, 1), Block(8, 0.01), Block(8, 3.0), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        ).eval()  # fmt: skip
    images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(teacher, images[:2])
    shares = block_redundancy(build_student(teacher, graph, Plan()), graph, images)
    assert set(shares) == set(graph.blocks) and all(0 <= s <= 1 for s in shares.values())
    assert shares["1.conv"] > 0.99 and 0.05 < shares["2.conv"] < 0.9 and shares["3"] < shares["1.conv"]
