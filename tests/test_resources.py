"""Resources: each keeps the protocol's promises, a user's own works like those of the package, and limits are read in their units."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import NETWORKS

from compress_env.cli.main import main
from compress_env.errors import UnknownName, UserError
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources import BUILT_IN, RESOURCES
from compress_env.resources.base import MeasuredResource, Measurement, Resource
from compress_env.resources.budget import parse_budget, parse_limit
from compress_env.resources.cost_model import CostModel
from compress_env.spec import EnvironmentSpec, ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.trace import trace
from compress_env.walk.observation import entries
from compress_env.walk.walk import Walk

ENERGY = """
from compress_env.resources.base import Resource

class Energy(Resource):
    unit = "mJ"
    def predict(self, view, widths):
        return 3e-6 * view.macs(widths) + 1e-3
    def count(self, student, example):
        from compress_env.resources.macs import Macs
        return 3e-6 * Macs().count(student, example) + 1e-3

class Named(Energy):
    name, label = "joules", "Joules"

class Taken(Energy):
    name = "macs"

class Unfinished(Resource):
    unit = "mJ"

class Unitless(Energy):
    unit = None

nothing = 1
"""


class Depth(Resource):
    """Layers with weights, which takes one plan at a time: widths play no part."""

    unit = "layers"

    def predict(self, view, widths):
        return float(sum(layer.kind in ("conv", "depthwise", "grouped", "linear") for layer in view.layers))

    def count(self, student, example):
        return float(sum(isinstance(m, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)) for m in student.modules()))


@pytest.fixture
def energy(tmp_path, monkeypatch):
    """`file.py:attribute` of a user's resource. The registry is as before afterwards."""
    monkeypatch.setattr(RESOURCES, "_loaded", {})
    (tmp_path / "energy.py").write_text(ENERGY)
    return f"{tmp_path}/energy.py:Energy"


@pytest.fixture
def depth(monkeypatch):
    """A user's resource that is registered."""
    monkeypatch.setattr(RESOURCES, "_entries", dict(RESOURCES._entries))
    RESOURCES.register("depth")(Depth)


def random_plans(graph, count: int = 15):
    rng = np.random.default_rng(0)
    for _ in range(count):
        removed = frozenset(name for name in graph.blocks if rng.random() < rng.random())
        yield removed, rng.integers(graph.floor, graph.full + 1)


# Every resource


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_resource_says_what_it_is(name):
    resource = RESOURCES.get(name)
    assert resource.name == name and isinstance(resource.label, str) and isinstance(resource.unit, str)
    assert resource.label and resource.unit
    assert isinstance(resource, MeasuredResource) == resource.measured
    assert {each.label for each in map(RESOURCES.get, BUILT_IN)} == {"Latency", "MACs", "Peak memory", "Parameters"}


@pytest.mark.parametrize("name", [n for n in BUILT_IN if not RESOURCES.get(n).measured] + ["depth", "energy"])
def test_a_prediction_is_the_count_on_the_student_to_the_last_digit(name, network, depth, energy):
    teacher, example, graph = network
    resource = RESOURCES.get(energy if name == "energy" else name)
    for removed, widths in random_plans(graph, 4):
        plan = graph.canonical(removed, widths)
        student = build_student(teacher, graph, plan)
        assert resource.predict(graph.view(frozenset(plan.removed)), graph.widths(plan)) == resource.count(student, example[:1])


class Numbers(torch.nn.Module):
    """Holds most memory where masks, of one byte a number, and places, of eight, are alive beside numbers of four."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.Conv2d(12, 20, 3, padding=1)
        self.head = torch.nn.Linear(20, 10)

    def forward(self, x):
        x = self.inner(self.stem(x).relu())
        high, low, where = x > 1, x < -1, x.long()
        return self.head((x.masked_fill(high | low, 0.0) * where).mean((2, 3)))


def test_memory_is_counted_by_the_bytes_of_each_number():
    teacher, example = Numbers().eval(), torch.randn(2, 3, 7, 7)
    graph = trace(teacher, example)
    view, elements = graph.view(frozenset()), {op.what: op.elements for op in graph.ops.values()}
    assert (elements["gt"], elements["mul"], elements["long"]) == (49 / 4, 49, 2 * 49)
    for _, widths in random_plans(graph, 8):
        plan = graph.canonical(frozenset(), widths)
        student = build_student(teacher, graph, plan)
        assert RESOURCES.get("memory").predict(view, graph.widths(plan)) == RESOURCES.get("memory").count(student, example[:1])


class Halves(Numbers):
    """Holds most memory where parts of a tensor, which lie together for one example and not for two, are joined again."""

    def forward(self, x):
        x = self.inner(self.stem(x).relu())
        a, b = (half.reshape(2 * x.shape[0], 5, 7, 7) for half in x.chunk(2, 1))
        return self.head(torch.cat([a, b], 1).reshape(x.shape[0], 20, 7, 7).mean((2, 3)) + x.mean((2, 3)))


def test_memory_of_one_example_is_what_that_takes():
    teacher, example = Halves().eval(), torch.randn(2, 3, 7, 7)
    graph = trace(teacher, example)
    for widths in (graph.full, graph.floor):
        plan = graph.canonical(frozenset(), widths)
        counted = RESOURCES.get("memory").count(build_student(teacher, graph, plan), example[:1])
        assert RESOURCES.get("memory").predict(graph.view(frozenset()), widths) == counted


@pytest.mark.parametrize("columns", [1, 7, 300])
@pytest.mark.parametrize("names", [("macs",), ("memory", "params", "macs"), ("macs", "energy")], ids="-".join)
def test_of_columns_that_grow_the_last_that_fits_is_found_for_several_series_at_once(names, columns, energy):
    counted = [energy if name == "energy" else name for name in names]
    problem = Problem.build(EnvironmentSpec.of_keywords(budget=dict.fromkeys(counted, "40%"), ranking="magnitude").problem)
    model, graph, rng = problem.cost_model, problem.graph, np.random.default_rng(0)
    widths = np.sort(rng.integers(1, graph.full[:, None, None] + 1, (len(graph.groups), 20, columns)))
    widths[:, 0] = graph.full[:, None]  # none of them fits
    view, limits = graph.view(frozenset()), {name: 0.4 * model.teacher[name] for name in names}
    series = widths.transpose(1, 0, 2)
    expected = [sum(model.fits(view, column, limits) for column in each.T) - 1 for each in series]
    assert model.last_fitting_each(view, widths, limits).tolist() == expected
    assert [model.last_fitting(view, each, limits) for each in series] == expected
    assert expected[0] == -1 and (columns == 1 or len(set(expected)) > 3)


@pytest.mark.parametrize("name", ["params", "macs", "memory"])
def test_fewer_channels_never_cost_more(name, network):
    _, _, graph = network
    resource = RESOURCES.get(name)
    for removed, widths in random_plans(graph):
        view = graph.view(removed)
        narrower = np.maximum(graph.floor, widths - 1)
        columns = np.stack([narrower, widths], axis=1)
        assert resource.predict(view, columns).tolist() == [resource.predict(view, narrower), resource.predict(view, widths)]
        assert resource.predict(view, narrower) <= resource.predict(view, widths)


# A user's own


def test_a_users_resource_is_in_budget_observation_and_usage_and_its_limit_holds(energy):
    env = gym.make("LayerRemoval-v0", budget={"macs": 0.6, energy: "0.5mJ"}).unwrapped
    names, rng = env.objective.embedding.names, np.random.default_rng(0)
    assert names[-8:] == tuple(f"{kind} {n}" for kind in ("budget", "spent") for n in (*BUILT_IN, "energy"))[-8:]
    teacher = env.objective.problem.cost_model.teacher
    assert teacher["energy"] == 3e-6 * teacher["macs"] + 1e-3
    for _ in range(3):
        observation, _ = env.reset()
        assert observation[names.index("budget energy")] == np.float32(0.5 / teacher["energy"])
        done = False
        while not done:
            _, _, done, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        assert info["is_success"] and info["budget"]["energy"] == 0.5
        assert info["usage"]["energy"] == 3e-6 * info["usage"]["macs"] + 1e-3 <= 0.5


def test_a_users_resource_goes_from_the_command_line_into_result_report_and_validation(energy, tmp_path):
    out = str(tmp_path / "run")

    def call(*words: str) -> str:
        done = CliRunner().invoke(main, [*words, "--out", out])
        assert done.exit_code == 0, done.output
        return done.output

    call("search", "--agent", "uniform", "--evaluations", "1", "--finetune-epochs", "1", "--budget", f"{energy}=60%")
    result = json.loads((tmp_path / "run/result.json").read_text())
    usage = result["student"]
    assert usage["energy"] == 3e-6 * usage["macs"] + 1e-3 <= result["budget"]["energy"]
    assert result["resources"]["energy"]["unit"] == "mJ"
    RESOURCES._loaded.clear()  # as in another process
    call("report")
    assert "mJ" in (tmp_path / "run/report.html").read_text()
    call("validate", "--budget", f"{energy}=60%")
    path = tmp_path / "run/trials.jsonl"
    path.write_text(path.read_text().replace(f'"energy": {usage["energy"]}', f'"energy": {usage["energy"] / 2}'))
    assert "energy was" in CliRunner().invoke(main, ["validate", "--trust", "--out", out]).output  # forged


def test_a_resource_that_is_registered_but_not_in_the_budget_changes_nothing(depth, energy):
    RESOURCES.get(energy)
    objective = Objective(EnvironmentSpec.of_keywords(teacher="resnet8-digits"))
    assert objective.problem.cost_model.names == ["macs", "memory", "params"]
    assert objective.embedding.names == tuple(name for name, _, _ in entries())
    assert len(objective.embedding.names) == 26
    with pytest.raises(UserError, match="depth"):
        objective.draw_limits(np.random.default_rng(0), {"depth": 0.5})


def test_a_resource_that_takes_one_plan_at_a_time_is_limited_too(depth):
    factory, shape = NETWORKS["resnet20-cifar10"]
    spec = ProblemSpec(factory().eval(), input_shape=shape, ranking="magnitude", resources=("depth",))
    problem, rng = Problem.build(spec), np.random.default_rng(0)
    limits = {"depth": 12.0, "macs": 0.5 * problem.cost_model.teacher["macs"]}
    for _ in range(5):
        walk = Walk(problem, limits)
        while not walk.done:
            walk.step(*rng.uniform(-0.5, 1, 2))
        found = problem.finish(walk.removed, walk.widths, limits)
        assert found.meets(limits) and found.usage["depth"] == Depth().count(found.student, None)


def test_one_name_stands_for_a_resource_however_it_was_given(energy):
    assert list(parse_budget({energy: 0.5})) == ["energy"] == list(parse_budget({"energy": 0.5}))
    assert RESOURCES.get("energy").label == "energy" and RESOURCES.get("energy").unit == "mJ"
    named = RESOURCES.get(energy.replace("Energy", "Named"))
    assert (named.name, named.label) == ("joules", "Joules") and RESOURCES.get("joules") is named
    with pytest.raises(UserError, match="energy is given twice"):
        parse_budget({energy: 0.5, "energy": 0.4})
    assert RESOURCES.names() == sorted(BUILT_IN)  # one that is loaded is not offered to others


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("Taken", "'macs' is the name of another resource"), ("Unfinished", "abstract class Unfinished"),
     ("Unitless", "has no unit"), ("nothing", "does not derive from"), ("Enery", "did you mean 'Energy'")],
)  # fmt: skip
def test_an_attribute_that_is_no_resource_is_refused_with_its_reason(attribute, message, energy):
    with pytest.raises(UserError, match=message):
        parse_budget({energy.replace("Energy", attribute): 0.5})


# A measured one of a user's


class Joules(Measurement):
    """Takes twice the energy that it is predicted to take, a little less each time that it is measured."""

    def __init__(self, context):
        super().__init__(100.0)
        self.whole = context.graph.view(frozenset()).macs(context.graph.full)
        self.runs = 0

    def predict(self, view, widths):
        return 100.0 * view.macs(widths) / self.whole

    def run(self, student):
        self.runs += 1
        return 60.0 - self.runs


class Meter(MeasuredResource):
    unit = "J"

    def prepare(self, context):
        return Joules(context)


def test_a_measured_resource_is_measured_once_a_plan_and_what_misses_its_limit_gives_way(monkeypatch, network):
    monkeypatch.setattr(RESOURCES, "_entries", dict(RESOURCES._entries))
    RESOURCES.register("meter")(Meter)
    teacher, example, graph = network
    cost_model, plan = CostModel(teacher, graph, example, ["meter"]), graph.canonical(frozenset(), graph.full // 2)
    assert cost_model.measured == {"meter"} and cost_model.names[-1] == "meter" and cost_model.teacher["meter"] == 100
    student = build_student(teacher, graph, plan)
    assert cost_model.count(student, plan)["meter"] == cost_model.count(student, plan)["meter"] == 59
    cost_model.remember(plan, {"meter": 30.0}, {"meter": 50.0})  # on a machine that takes half
    assert cost_model.count(student, plan)["meter"] == 60
    repair = {"removable": frozenset(), "shrinkable": np.ones(len(graph.groups), bool), "smallest": graph.floor}
    assert cost_model.repair(frozenset(), graph.full, {"meter": 57.0}, **repair) is None
    found = cost_model.repair(frozenset(), graph.floor, {"meter": 57.0}, **repair)
    assert found.usage["meter"] == 57 and found.plan == graph.canonical(frozenset(), graph.floor)


# Limits


@pytest.mark.parametrize(
    ("resource", "text", "value", "share"),
    [("latency", "2.5ms", 2.5, False), ("latency", "2m", None, None), ("macs", "2m", 2e6, False),
     ("latency", "500us", 0.5, False), ("latency", "1S", 1000, False),
     ("memory", "1MiB", 2**20, False), ("memory", "2kb", 2000, False), ("memory", "300 bytes", 300, False),
     ("macs", "20M", 2e7, False), ("macs", "20M MACs", None, None), ("macs", "300K", 3e5, False), ("macs", "50%", 0.5, True),
     ("macs", "5ms", None, None), ("params", "1MiB", None, None), ("energy", "3mJ", 3, False), ("energy", "3", 3, False),
     ("energy", "0.5mJ", 0.5, False), ("energy", "0.5", 0.5, True), ("energy", "3MJ", None, None)],
)  # fmt: skip
def test_a_limit_is_read_in_units_of_its_resource(resource, text, value, share, energy):
    RESOURCES.get(energy)
    if value is None:
        with pytest.raises(UserError, match=f"cannot read the budget '{text}' of {resource}"):
            parse_limit(text, RESOURCES.get(resource))
    else:
        limit = parse_limit(text, RESOURCES.get(resource))
        assert limit.value == pytest.approx(value) and limit.share is share


def test_an_unknown_resource_of_a_budget_is_named_with_the_nearest():
    with pytest.raises(UnknownName, match="budget: no resource 'mac'; did you mean 'macs'"):
        parse_budget({"mac": 0.5})
    for value in (None, {"a": 1}, True):
        with pytest.raises(UserError, match="a budget is a number or a text, got .* for macs"):
            parse_budget({"macs": value})
