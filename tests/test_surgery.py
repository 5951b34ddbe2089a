"""Removal and shrinking: students are valid, physically smaller, inherit the teacher's weights and cost what was predicted."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from networks import NETWORKS, Functional, random_plan, vgg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.errors import InvalidPlan, UserError
from compress_env.problem import Problem
from compress_env.resources.base import RESOURCES
from compress_env.resources.cost_model import CostModel
from compress_env.spec import ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.surgery.tracer import NotTraced
from compress_env.teachers.resnet import resnet8_digits
from compress_env.walk.walk import Walk


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_the_empty_plan_gives_the_teachers_outputs_bit_for_bit(network):
    teacher, example, graph = network
    student = build_student(teacher, graph, Plan())
    with torch.no_grad():
        assert torch.equal(student(example), teacher(example))
    assert student.state_dict().keys() == teacher.state_dict().keys()


def test_the_teacher_is_unchanged_and_shares_nothing_after_100_builds(network):
    teacher, _, graph = network
    before, flags = _state(teacher), [m.training for m in teacher.modules()]
    places = {t.untyped_storage().data_ptr() for t in teacher.state_dict().values()}
    rng = np.random.default_rng(0)
    for _ in range(100):
        student = build_student(teacher, graph, random_plan(graph, rng))
        own = {t.untyped_storage().data_ptr() for t in student.state_dict().values() if t.numel()}
        assert not own & places
        with torch.no_grad():
            for p in student.parameters():
                p.fill_(torch.nan)
    after = teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert flags == [m.training for m in teacher.modules()]
    assert all(p.requires_grad for p in teacher.parameters())


def test_any_removal_and_widths_give_a_network_that_runs_trains_and_costs_what_was_predicted(network):
    teacher, example, graph = network
    rng = np.random.default_rng(1)
    for _ in range(25):
        plan = random_plan(graph, rng)
        student = build_student(teacher, graph, plan)
        with torch.no_grad():
            assert student(example).shape == teacher(example).shape
        reduced, widths = graph.view(frozenset(plan.removed)), graph.widths(plan)
        assert sum(p.numel() for p in student.parameters()) == reduced.parameters(widths)
        shadow, one = pickle.loads(pickle.dumps(student)).to("meta"), example[:1].to("meta")
        with FlopCounterMode(display=False) as counter:
            shadow(one)
        assert counter.get_total_flops() == 2 * reduced.macs(widths)
        assert RESOURCES.get("memory").count(shadow, one) == RESOURCES.get("memory").predict(reduced, widths)
        student.train()(example).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())


def test_peak_memory_agrees_with_pytorchs_own_tracker(network):
    from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

    teacher, example, graph = network
    student = build_student(teacher, graph, Plan())
    tracker = MemTracker()
    tracker.track_external(student)
    one = example[:1].clone()
    tracker.track_external(one)
    with torch.no_grad(), tracker:
        student(one)
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    tracked = sum(v for k, v in peak.items() if k in (_MemRefType.ACT, _MemRefType.TEMP, _MemRefType.OTH))
    ours = graph.view(frozenset()).activation_bytes(graph.full)
    assert ours == pytest.approx(
        tracked, rel=0.25
    )  # the tracker keeps inputs alive and counts what operators allocate inside


def test_removing_or_narrowing_never_costs_more(network):
    _, _, graph = network
    whole = graph.view(frozenset())
    for name in graph.blocks:
        assert graph.view(frozenset([name])).macs(graph.full) <= whole.macs(graph.full)
    for i in range(len(graph.groups)):
        narrower = graph.full.copy()
        narrower[i] -= 1
        for cost in (whole.macs, whole.parameters, whole.activation_bytes):
            assert cost(narrower) <= cost(graph.full)


def test_units_of_residual_networks_are_their_branches_and_leave_the_shortcut():
    teacher = NETWORKS["resnet20-cifar10"][0]().eval()
    graph = trace(teacher, torch.zeros(1, 3, 32, 32))
    assert list(graph.blocks) == [f"stages.{i}.{j}" for i in range(3) for j in range(3)]
    assert {u.kind for u in graph.blocks.values()} == {"branch"}
    student = build_student(teacher, graph, Plan.of(["stages.1.0", "stages.2.2"]))
    names = {name for name, _ in student.named_parameters()}
    assert "stages.1.0.shortcut.0.weight" in names and "stages.1.0.conv1.weight" not in names
    assert not any(name.startswith("stages.2.2") for name in names)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for block in (teacher.stages[1][0], teacher.stages[2][2]):
            block.bn2.weight.zero_()
            block.bn2.bias.zero_()
        torch.testing.assert_close(student(x), teacher(x))  # a branch of zeros and no branch are the same


def test_widths_of_a_residual_stage_are_one_group_and_inner_widths_their_own():
    graph = trace(NETWORKS["resnet20-cifar10"][0]().eval(), torch.zeros(1, 3, 32, 32))
    sizes = {name: g.size for name, g in graph.groups.items()}
    assert sizes["conv1"] == 16 and sizes["stages.1.0.conv2"] == 32 and sizes["stages.2.0.conv2"] == 64
    assert len(sizes) == 3 + 9
    produced = {m.layer for m in graph.groups["conv1"].members if m.side == "out" and "conv" in m.layer}
    assert produced == {"conv1", "stages.0.0.conv2", "stages.0.1.conv2", "stages.0.2.conv2"}
    assert "fc" in graph.left_alone


def test_cutting_channels_whose_consumers_ignore_them_changes_nothing():
    teacher, example = vgg().eval(), torch.randn(4, 3, 8, 8)
    graph = trace(teacher, example)
    group = next(g for g in graph.groups.values() if g.name == "7")
    dropped = ~group.kept(group.size // 2)
    consumer = teacher[10]
    with torch.no_grad():
        consumer.weight[:, torch.from_numpy(dropped)] = 0
    student = build_student(teacher, graph, Plan.of((), {"7": group.size // 2}))
    assert student.get_submodule("7").out_channels == student.get_submodule("10").in_channels == group.size // 2
    with torch.no_grad():
        torch.testing.assert_close(student(example), teacher(example))


def test_a_chain_offers_same_shape_layers_and_repairs_behind_the_others():
    teacher = vgg().eval()
    graph = trace(teacher, torch.zeros(1, 3, 8, 8))
    kinds = {name: block.kind for name, block in graph.blocks.items()}
    assert kinds["3"] == "region" and kinds["10"] == "region" and kinds["7"] == "chain" and kinds["13"] == "chain"
    student = build_student(teacher, graph, Plan.of(["7", "10"]))
    assert student.get_submodule("13").weight.shape == (24, 8, 3, 3)
    one = build_student(teacher, graph, Plan.of(["13"]))
    assert one.get_submodule("18").weight.shape == (32, 16 * 4)


class Joined(nn.Module):
    """Of a branch of three layers, the last keeps the shape, and what reads it reads the input beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.d, self.head = nn.Conv2d(9, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        y = self.c(self.b(self.a(x).relu()).relu()).relu()
        return self.head(self.d(torch.cat([x, y], 1)).relu().mean((2, 3)))


def test_a_layer_whose_input_would_come_to_be_joined_with_others_stays_and_the_region_behind_it_goes():
    graph = trace(Joined().eval(), torch.randn(2, 3, 8, 8))
    assert list(graph.blocks) == ["a", "c"]
    assert graph.left_alone["b"] == "not removable: without what is behind it, its input would be joined with other channels"


def test_a_layer_of_a_chain_goes_with_all_the_regions_behind_it():
    teacher = nn.Sequential(*[m for a, b in ((3, 4), (4, 6), (6, 6), (6, 6)) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())])
    teacher.extend([nn.Flatten(), nn.Linear(6 * 16, 5)]).eval()
    graph = trace(teacher, torch.randn(2, 3, 4, 4))
    assert [block.kind for block in graph.blocks.values()] == ["chain", "chain", "region", "region"]
    assert build_student(teacher, graph, Plan.of(graph.blocks))(torch.randn(2, 3, 4, 4)).shape == (2, 5)


def test_a_repaired_layer_continues_the_linear_part_of_the_removed_one():
    teacher = nn.Sequential(
        nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(5, 4, 1, bias=False), nn.Flatten(), nn.Linear(16, 2)
    )
    teacher.eval()
    x = torch.randn(6, 3, 2, 2)
    graph = trace(teacher, x)
    student = build_student(teacher, graph, Plan.of(["0"]))
    with torch.no_grad():
        torch.testing.assert_close(student(x), teacher(x))  # two linear layers are one


def test_depthwise_and_called_twice_modules_are_handled():
    graph = trace(Functional().eval(), torch.zeros(1, 3, 8, 8))
    assert {name: block.kind for name, block in graph.blocks.items()} == {"depthwise": "branch", "mix": "branch"}
    assert graph.groups["stem"].size == 12
    assert {m.layer for m in graph.groups["stem"].members} >= {"stem", "depthwise", "norm", "point", "expand"}
    student = build_student(Functional().eval(), graph, Plan.of((), {"stem": 5}))
    assert student.get_submodule("depthwise").groups == 5


def test_channels_are_chosen_by_importance():
    teacher = vgg(norm=False).eval()
    with torch.no_grad():
        teacher[0].weight *= torch.tensor([1.0, 0.01, 1, 0.01, 1, 0.01, 1, 0.01]).view(-1, 1, 1, 1)
    graph = trace(teacher, torch.zeros(1, 3, 8, 8))
    assert np.flatnonzero(graph.groups["0"].kept(4)).tolist() == [0, 2, 4, 6]
    student = build_student(teacher, graph, Plan.of((), {"0": 4}))
    assert torch.equal(student.get_submodule("0").weight, teacher[0].weight[::2])


def test_canonical_plans_drop_what_makes_no_difference():
    graph = trace(NETWORKS["resnet8-digits"][0]().eval(), torch.zeros(1, 1, 8, 8))
    full = graph.full.copy()
    assert graph.canonical(frozenset(), full) == Plan()
    widths = dict(zip(graph.groups, full)) | {"stages.0.0.conv1": 3}
    assert graph.canonical(frozenset(["stages.0.0"]), widths) == Plan.of(["stages.0.0"])


def test_plans_survive_json_and_have_keys_that_differ():
    plan = Plan.of(["b", "a"], {"y": 3, "x": 2})
    assert plan.removed == ("a", "b") and plan.widths == (("x", 2), ("y", 3))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.key == Plan.from_json(plan.to_json()).key != Plan.of(["a"]).key
    assert hash(plan) == hash(Plan.from_json(plan.to_json()))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan.of(["stages.0.9"]), "did you mean 'stages.0.0'"),
        (Plan.of((), {"conv2": 3}), "did you mean 'conv1'"),
        (Plan.of((), {"conv1": 0}), "keeps 0 channels of 'conv1', which has 16"),
        (Plan.of((), {"conv1": 17}), "keeps 17 channels"),
    ],
)
def test_plans_of_another_network_are_refused_by_name(plan, message):
    teacher = NETWORKS["resnet8-digits"][0]().eval()
    graph = trace(teacher, torch.zeros(1, 1, 8, 8))
    with pytest.raises(InvalidPlan, match=message):
        build_student(teacher, graph, plan)


def test_kept_layers_are_neither_removed_nor_shrunk():
    graph = trace(NETWORKS["resnet8-digits"][0]().eval(), torch.zeros(1, 1, 8, 8), protect=["stages.0.*"])
    assert "stages.0.0" not in graph.blocks and "stages.1.0" in graph.blocks
    assert "stages.0.0.conv1" not in graph.groups and "conv1" not in graph.groups
    assert graph.left_alone["stages.0.0.conv1"] == "kept on request"


class Gate(nn.Module):
    """A block whose control flow depends on the data."""

    def __init__(self, channels: int):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x):
        y = self.narrow(self.wide(x).relu())
        return x + y if y.mean() > 0 else x - y


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 8, 3, padding=1), Gate(8)
        self.mix, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.gate(self.stem(x).relu())
        return self.head((self.mix(x) + x).mean((2, 3)))


class Choosy(Gated):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


@pytest.mark.parametrize(
    ("network", "where", "inside"), [(Gated, "gate (Gate)", "gate.wide"), (Choosy, "Choosy", "network.gate.wide")]
)
def test_what_cannot_be_traced_is_named_with_its_line_and_shrinks_inside(network, where, inside):
    teacher, x = network().eval(), torch.randn(4, 3, 8, 8)
    with pytest.warns(NotTraced, match=rf"{re.escape(where)} cannot be traced \(test_surgery.py:\d+"):
        graph = trace(teacher, x)
    assert inside in graph.groups and not any("wide" in u for block in graph.blocks.values() for u in block.layers)
    assert list(graph.blocks) == (["gate", "mix"] if network is Gated else [])
    assert torch.equal(build_student(teacher, graph, Plan())(x), teacher(x))
    cost_model = CostModel(teacher, graph, x)
    assert cost_model.teacher["macs"] == sum(
        8 * 8 * c.weight.numel() for c in (teacher.stem, teacher.gate.wide, teacher.gate.narrow, teacher.mix)
    ) + teacher.head.weight.numel()  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(10):
        plan = random_plan(graph, rng)
        student = build_student(teacher, graph, plan)
        assert student(x).shape == (4, 5)
        usage, predicted = cost_model.count(student, plan), cost_model.predict_all(frozenset(plan.removed), graph.widths(plan))
        assert all(usage[n] == predicted[n] for n in ("params", "macs"))


def test_a_network_that_does_not_run_is_refused_with_what_it_says():
    with pytest.raises(UserError, match=r"Gated does not run on inputs of shape \(2, 4, 8, 8\): .*channels"):
        trace(Gated().eval(), torch.zeros(1, 4, 8, 8))
    with pytest.raises(UserError, match="has to return one tensor"):
        trace(nn.LSTM(4, 4).eval(), torch.zeros(1, 3, 4))


def test_scope_restricts_what_is_removed_and_shrunk_and_names_unknown_layers():
    teacher, x = resnet8_digits().eval(), torch.zeros(1, 1, 8, 8)
    graph = trace(teacher, x, removable=["stages.1.*"], shrinkable=["stages.2.*"])
    assert list(graph.blocks) == ["stages.1.0"] and list(graph.groups) == ["stages.2.0.conv1", "stages.2.0.conv2"]
    with pytest.raises(UserError, match="no layer is called 'stage.1'"):
        trace(teacher, x, protect=["stage.1"])


def test_widths_are_multiples_for_the_hardware():
    teacher = NETWORKS["resnet20-cifar10"][0]().eval()
    spec = ProblemSpec(teacher, input_shape=(3, 32, 32), ranking="magnitude", channel_multiple=8)
    problem = Problem.build(spec)
    rng = np.random.default_rng(0)
    for _ in range(20):
        limits = {"macs": rng.uniform(problem.smallest("macs"), problem.cost_model.teacher["macs"])}
        episode = Walk(problem, limits, hard=True)
        while not episode.done:
            episode.step(*rng.uniform(-1, 1, 2))
        _, student, usage = problem.finish(episode.removed, episode.widths, limits)
        assert usage["macs"] <= limits["macs"]
        assert {m.out_channels % 8 for m in student.modules() if isinstance(m, nn.Conv2d)} == {0}


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.table = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
            self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, image, table):
            x = torch.cat([self.image(image).mean((2, 3)), self.table(table)], 1)
            return self.head(torch.relu(self.hidden(x)) + x)

    teacher, inputs = Two().eval(), (torch.randn(4, 3, 8, 8), torch.randn(4, 5))
    graph = trace(teacher, inputs)
    assert list(graph.blocks) == ["hidden"] and list(graph.groups) == ["image", "table"]
    student = build_student(teacher, graph, Plan.of(["hidden"], {"image": 2, "table": 3}))
    assert student(*inputs).shape == (4, 3) and student.head.in_features == 5


def test_dropout_and_normalisation_follow_the_mode_of_the_student():
    teacher = vgg().eval()
    graph = trace(teacher, torch.zeros(1, 3, 8, 8))
    student = build_student(teacher, graph, Plan.of(["3"]))
    before = student.get_submodule("1").running_mean.clone()
    student.train()(torch.randn(8, 3, 8, 8))
    assert not torch.equal(before, student.get_submodule("1").running_mean)
