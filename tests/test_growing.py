"""Networks that may grow: `NetworkGrowth-v0`, `NetworkTransformation-v0`, and searches of them."""

from __future__ import annotations

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress_env
from compress_env.api import compress
from compress_env.cli.main import main
from compress_env.decisions import InsertBlock
from compress_env.envs import render
from compress_env.errors import InfeasibleBudget, InvalidPlan, UserError
from compress_env.objective import Objective
from compress_env.search.run import search
from compress_env.spec import EnvironmentSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.net2net import difference
from compress_env.surgery.net2net import growing as grown
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.walk.rows import network_rows

SMALL = {"evaluator": {"distill_steps": 2, "batch_size": 16, "validation_images": 60, "calibration_images": 32}}


def small() -> nn.Module:
    """A network that is too small for the digits, with weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)).eval()


@pytest.fixture(scope="module")
def growing() -> Objective:
    settings = {"changes": "grow", "max_growth": 3.0, "budget": {"macs": "250%"}, **SMALL}
    return Objective(EnvironmentSpec.of_keywords(teacher=small(), data="digits", **settings))


@pytest.fixture(scope="module")
def transforming() -> Objective:
    return Objective(EnvironmentSpec.of_keywords(teacher=small(), data="digits", changes="transform", **SMALL))


def finished(objective: Objective, actions: np.ndarray):
    walk = objective.begin(objective.budgets(1)[0])
    for action in actions:
        walk.step(*action.tolist())
    return walk


@pytest.mark.parametrize("id", ["NetworkGrowth-v0", "NetworkTransformation-v0"])
def test_is_an_environment(id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(id, teacher=small(), data="digits", **SMALL, render_mode="rgb_array").unwrapped
        check_env(env)
        check_env_sb3(env)
    assert env.observation_space.shape == (20,)
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_without_training_every_growth_computes_what_the_network_does(growing):
    problem, rng = growing.problem, np.random.default_rng(0)
    inputs = problem.data.calibration(16)
    teacher = problem.cost_model.teacher
    grown = 0
    for _ in range(15):
        walk = finished(growing, rng.uniform(-1, 1, (growing.steps, 2)))
        plan = problem.finish(walk.removed, walk.widths, walk.limits).plan
        student = build_student(problem.module, problem.graph, plan)
        assert difference(problem.teacher.module, student, inputs) < 1e-5
        usage = problem.cost_model.count(student, plan)
        assert usage["macs"] <= 2.5 * teacher["macs"] and usage["params"] >= teacher["params"]
        assert usage == pytest.approx(problem.cost_model.predict_all(walk.removed, walk.widths))
        grown += usage["macs"] > 1.5 * teacher["macs"] and bool(plan.inserted) and bool(plan.widths)
        assert Plan.from_json(plan.to_json()) == plan
    assert grown > 5


def test_the_empty_plan_is_the_network_as_it_came_bit_for_bit(growing, transforming):
    for objective in (growing, transforming):
        inputs = objective.problem.data.calibration(16)
        assert torch.equal(objective.problem.whole(inputs), objective.problem.teacher.module(inputs))
        assert any(isinstance(d, InsertBlock) for d in objective.problem.decisions)


class Normalised(nn.Module):
    """Channels of a residual network reach a layer normalisation, unless a layer is inserted in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(self.norm(x.mean((2, 3))))


class Joined(nn.Module):
    """Two kinds of channels are normalised together, one of which may come from a layer that is inserted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 16)
        self.third, self.head = nn.Conv2d(16, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.norm(torch.cat([x, torch.relu(self.second(x))], 1))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


class Compared(nn.Module):
    """Two means are equal, and stay so where channels are copied, unless a layer is inserted before one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((torch.relu(x).mean(1) - torch.relu(x).mean(1)).flatten(1))


class Sharpened(nn.Module):
    """What is behind a place has the shape of what is in front of it, and no weights, so that it looks like part of the insertion."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Dropout(), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(self.drop(torch.relu(self.first(x)))))
        return self.head(torch.relu(x.mean((2, 3))).softmax(1))


@pytest.mark.parametrize(
    ("kind", "optional", "wider"),
    [
        (Normalised, ["deeper_add", "deeper_relu_1.0"], {"deeper_add.0"}),
        (Joined, ["deeper_relu.0", "deeper_relu_1.0", "deeper_relu_2.0"], {"third", "deeper_relu_2.0"}),
        (Compared, ["deeper_relu.0", "deeper_relu_1.0"], set()),
        (Sharpened, ["deeper_relu", "deeper_relu_2"], {"first", "deeper_relu.0", "deeper_relu_2.0"}),
    ],
)
def test_whatever_is_inserted_and_wider_computes_what_the_network_does(kind, optional, wider):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = kind().eval(), 8 * torch.randn(8, 3, 6, 6)
    larger, graph = grown(network, trace(network, inputs[:2]), lambda m: trace(m, inputs[:2]), 2.0, False, inputs)
    most = {name: g.most for name, g in graph.groups.items() if g.most > g.size}
    assert sorted(graph.optional) == optional and most.keys() == wider
    came = build_student(larger, graph, Plan())
    assert torch.equal(came(inputs), network(inputs)) and len(list(came.modules())) == len(list(network.modules()))
    widths = [most, *({name: n} for name in most for n in (9, 11)), {name: 11 for name in most}]
    for inserted in itertools.chain.from_iterable(itertools.combinations(optional, n) for n in range(4)):
        for own in widths:
            plan = Plan.of(inserted=inserted, widths=own)
            assert difference(network, build_student(larger, graph, plan), inputs) < 1e-5


def test_no_growth_is_judged_to_differ_without_training():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, images = Normalised().eval(), torch.randn(60, 3, 6, 6)
    data = TensorDataset(images, torch.arange(60) % 5)
    settings = {"changes": "grow", "budget": {"macs": "300%"}, "evaluator": {"distill_steps": 0}}
    objective = Objective(EnvironmentSpec.of_keywords(teacher=network, data=(data, data), **settings))
    rng = np.random.default_rng(0)
    for keep in (-1, -1, 1, 1):
        sparsities = rng.uniform(-1, 1, objective.steps)
        judged = objective.judge(finished(objective, np.stack([np.full(objective.steps, keep), sparsities], 1)))
        assert judged.evaluation.kl == pytest.approx(0, abs=1e-6)


def test_what_the_actions_mean(growing, transforming):
    rooms = growing.problem.cost_model.teacher["macs"]
    nothing = np.zeros((growing.steps, 2))
    nothing[:, 1] = 1
    walk = finished(growing, nothing)
    assert walk.removed == frozenset() and np.array_equal(walk.widths, growing.problem.graph.full)
    uniform = finished(growing, np.zeros((growing.steps, 2)))
    assert not uniform.removed and 2.0 * rooms < uniform.usage["macs"] <= 2.5 * rooms
    most = np.ones((growing.steps, 2))
    most[:, 1] = -1
    assert finished(growing, most).removed  # something is inserted
    same = finished(transforming, np.zeros((transforming.steps, 2)))
    assert same.removed == frozenset() and np.array_equal(same.widths, transforming.problem.graph.full)
    smallest = -np.ones((transforming.steps, 2))
    smallest[:, 1] = 1
    walk = finished(transforming, smallest)
    assert walk.usage["macs"] < 0.2 * transforming.problem.cost_model.teacher["macs"]


def test_plans_that_insert_are_checked(growing):
    graph = growing.problem.graph
    with pytest.raises(InvalidPlan, match="inserts 'nowhere'"):
        graph.check(Plan.of(inserted=["nowhere"]))
    assert graph.canonical(graph.optional, graph.full).inserted == tuple(sorted(graph.optional))
    dead = {g: 20 for g, group in graph.groups.items() if group.layer.startswith("deeper")}
    assert dead and graph.canonical(frozenset(), dead) == Plan()


@pytest.mark.parametrize("agent", ["random", "model", "greedy", "ddpg"])
def test_agents_search(transforming, agent):
    found = search(transforming, agent, 6, seed=0, progress=False)
    assert len(found.trials) == 6 and all(t.evaluation.meets(t.limits) and not t.evaluation.failed for t in found.trials)
    assert len({t.plan for t in found.trials}) > 1
    again = search(transforming, agent, 6, seed=0, progress=False)
    assert [(t.plan, t.reward) for t in again.trials] == [(t.plan, t.reward) for t in found.trials]


def test_training_makes_networks_differ(growing):
    first = growing.judge(finished(growing, np.zeros((growing.steps, 2))))
    other = growing.judge(finished(growing, np.ones((growing.steps, 2))))
    assert first.evaluation.kl and first.evaluation.kl != other.evaluation.kl
    assert first.reward == first.evaluation.metric


def test_what_does_not_go_together_is_refused(growing):
    with pytest.raises(InfeasibleBudget, match="smallest reachable"):
        Objective(EnvironmentSpec.of_keywords(teacher=small(), data="digits", changes="grow", budget={"macs": 0.5}))
    with pytest.raises(UserError, match="max_growth is for"):
        EnvironmentSpec.of_keywords(max_growth=3.0)
    with pytest.raises(UserError, match="relative actions are about"):
        EnvironmentSpec.of_keywords(changes="grow", actions="relative")
    with pytest.raises(UserError, match="leave changes out"):
        gym.make("NetworkGrowth-v0", changes="compress")
    with pytest.raises(UserError, match="sensitivities"):
        search(growing, "allocation", 2, progress=False)


def test_a_grown_network_is_trained_on_labels_saved_and_loaded(tmp_path, capsys):
    settings = {"changes": "grow", "budget": {"macs": "200%"}, "evaluator": SMALL["evaluator"] | {"distill_steps": 30, "lr": 0.01}}
    found = compress(small(), "digits", agent="random", evaluations=3, out=tmp_path, finetune_epochs=12, progress=False, **settings)
    assert found.result.student.metric_test > found.result.teacher.metric_test + 0.1  # it was not trained at all
    assert not (tmp_path / "sensitivities.json").exists() and not (tmp_path / "parts.json").exists()
    objective = Objective(EnvironmentSpec.of_keywords(teacher=small(), data="digits", **settings))
    graph = objective.problem.graph
    largest = graph.canonical(graph.optional, graph.most)
    rows = network_rows(objective.problem, largest.switched, graph.widths(largest))
    assert {"wider", "inserted"} <= {row["status"] for row in rows}
    assert all(row["before"] == 0 < row["after"] for row in rows if row["status"] == "inserted")
    assert "inserted" in render.ansi(rows, {}, "grown") and render.picture(rows, {}, "grown").shape == (720, 960, 3)
    assert compress_env.Plan.from_json((tmp_path / "plan.json").read_text()) == found.plan


def test_the_command_line_grows(tmp_path, capsys):
    arguments = "search --changes transform --budget macs=1.0 --agent random --evaluations 2 --finetune-epochs 0"
    arguments += " --evaluator distill_steps=1"
    with pytest.raises(SystemExit) as end:
        main([*arguments.split(), "--out", str(tmp_path / "run")])
    assert end.value.code == 0
