"""Latency: what it is measured with, the table and its cache, pairs, repair with a made-up clock, and true memory."""

from __future__ import annotations

import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import NETWORKS
from torch.profiler import ProfilerActivity, profile

from benchmarks.latency import measure as bench
from benchmarks.latency.__main__ import main as benchmark
from compress_env.api import run_search
from compress_env.cli.main import main
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources.cost_model import CostModel
from compress_env.resources.latency import cache as latency_cache
from compress_env.resources.latency import repair, resource
from compress_env.resources.latency import table as latency_table
from compress_env.resources.latency.operations import OperationCosts
from compress_env.resources.latency.runtimes import RuntimeConfig, kernel_times, node_times, prepare
from compress_env.resources.latency.stopwatch import Paired, Stopwatch, compare
from compress_env.resources.macs import Macs
from compress_env.spec import EnvironmentSpec, ProblemSpec, SearchSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.measure import meta_copy
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.walk.walk import Walk

TEACHER_MS = 8.0


def network_of(name: str, **scope):
    factory, shape = NETWORKS[name]
    teacher, example = factory().eval(), torch.randn(2, *shape)
    return teacher, example, trace(teacher, example, **scope)


class MadeUp:
    """A clock for which a pass takes as long as its MACs say, to a power, so that the table is wrong by what is asked for.

    each: share of the teacher's time that every convolution takes as well, of which the table is not told.
    """

    def __init__(self, example, whole_macs: float, power: float = 1.0, each: float = 0.0):
        self.runtime, self.example, self.whole_macs = RuntimeConfig(), example[:1], whole_macs
        self.power, self.each = power, each
        self.nodes_measured, self.pairs_measured = 0, 0

    def nodes(self, student, costs: OperationCosts, widths, seconds=0.2):
        self.nodes_measured += 1
        work = costs(widths)[0] * costs.computes
        return dict(zip(costs.names, (TEACHER_MS * work / self.whole_macs + 1e-6).tolist()))

    def pair(self, student, seconds=None, at_least=15):
        self.pairs_measured += 1
        ratio = Macs().count(meta_copy(student), self.example.to("meta")) / self.whole_macs
        if seconds is None:  # verification differs from what the table was made of
            layers = sum(isinstance(m, torch.nn.Conv2d) for m in student.modules())
            ratio = ratio**self.power + self.each * layers
        return Paired(ratio, ratio, ratio, (TEACHER_MS * ratio, TEACHER_MS), at_least)


def made_up_problem(
    monkeypatch, folder, power: float = 1.0, name: str = "resnet8-digits", each: float = 0.0
) -> Problem:
    """Its table is measured in `folder`, if it is not there; `clock` of the problem measures."""
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(folder))
    teacher, example, graph = network_of(name)
    clock = MadeUp(example, graph.view(frozenset()).macs(graph.full), power, each)
    monkeypatch.setattr(resource, "Stopwatch", lambda *_: clock)
    spec = ProblemSpec(
        teacher, input_shape=tuple(example.shape[1:]), ranking="magnitude", channel_multiple=1, resources=("latency",)
    )
    problem = Problem.build(spec)
    problem.clock = clock
    return problem


def play(problem: Problem, limits, act=lambda: (0.0, 0.0)):
    walk = Walk(problem, limits)
    while not walk.done:
        walk.step(*act())
    return walk, *problem.finish(walk.removed, walk.widths, limits)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A cache with the table of ResNet-8 by the made-up clock."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        made_up_problem(patch, folder)
    return folder


@pytest.fixture
def measured(table, tmp_path):
    """The same without verified students, which differ from test to test."""
    shutil.copytree(table, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.plans.jsonl"))
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Real measurements, few ones."""
    monkeypatch.setattr(latency_table, "SHARES", (1.0, 0.5))
    monkeypatch.setattr(latency_table, "MIXED", 2)


# Runtimes


def test_a_runtime_reads_what_is_given_and_says_what_it_is():
    assert RuntimeConfig.of(None).label == "batch 1, PyTorch eager, 1 thread"
    given = {"runtime": "onnxruntime", "batch": 4, "threads": 2}
    runtime = RuntimeConfig.of(given)
    assert runtime.label == "batch 4, ONNX Runtime, 2 threads" and RuntimeConfig.of(runtime.as_dict()) == runtime


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runtime": "onnx"}, "did you mean 'onnxruntime'"),
        ({"batch": 0}, "batch has to be"),
        ({"threads": 1.5}, "threads has to be"),
        ({"thread": 1}, "did you mean 'threads'"),
        ({"runtime": "onnxruntime", "device": "cuda"}, "no CUDAExecutionProvider"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        RuntimeConfig.of(given)


def test_runtimes_agree_and_leave_threads_and_the_module_alone():
    teacher, example, graph = network_of("resnet20-cifar10")
    student = build_student(teacher, graph, graph.canonical(frozenset([next(iter(graph.blocks))]), graph.full // 2))
    with torch.no_grad():
        expected = student(example[:1]).repeat(3, 1)
    before, state = torch.get_num_threads(), {k: v.clone() for k, v in student.state_dict().items()}
    for name in ("eager", "onnxruntime"):
        runtime = RuntimeConfig(name, batch=3, threads=2)
        run = prepare(student, example, runtime)
        with runtime.active():
            assert torch.get_num_threads() == 2
            found = torch.as_tensor(run())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.get_num_threads() == before and torch.is_grad_enabled()
    assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items())


def test_every_operation_gets_a_time_and_layers_are_told_apart_in_onnx_runtime():
    teacher, example, graph = network_of("resnet8-digits")
    whole, costs = build_student(teacher, graph, Plan()), OperationCosts(graph.view(frozenset()))
    eager = node_times(whole, example, RuntimeConfig(), 0.01)
    assert set(costs.names) <= set(eager) and min(eager.values()) > 0
    kernels = kernel_times(whole, example, RuntimeConfig("onnxruntime", batch=2), 0.01)
    layers = sorted(2 * round(w) for w, c in zip(costs(graph.full)[0], costs.computes) if c)
    assert sorted(k.macs for k in kernels if k.macs) == layers
    found = Stopwatch(whole, example, RuntimeConfig("onnxruntime")).nodes(whole, costs, graph.full, 0.01)
    assert set(found) == set(costs.names)


# Pairs


def test_a_pair_is_the_ratio_of_both_even_if_the_machine_slows_down():
    begun = time.thread_time()

    def busy(milliseconds: float) -> None:
        slow = 3 if time.thread_time() - begun > 0.1 else 1
        end = time.thread_time() + slow * milliseconds / 1e3
        while time.thread_time() < end:
            pass

    pair = compare(lambda: busy(0.2), lambda: busy(0.4), RuntimeConfig(), seconds=0.3)
    assert pair.ratio == pytest.approx(0.5, rel=0.1) and pair.low <= pair.ratio <= pair.high and pair.pairs >= 15


# Table


def test_work_is_the_networks_own_cost_and_grades_follow_the_channels():
    _, _, graph = network_of("resnet20-cifar10")
    rng = np.random.default_rng(0)
    for _ in range(5):
        network = graph.view(frozenset(u for u in graph.blocks if rng.random() < 0.4))
        widths, costs = rng.integers(graph.floor, graph.full + 1), OperationCosts(network)
        work, _ = costs(widths)
        assert (work * costs.computes).sum() == pytest.approx(network.macs(widths))
    costs = OperationCosts(graph.view(frozenset()))
    for width, grade in ((16, 0), (8, 1), (12, 2), (13, 3)):
        assert set(costs(np.full(len(graph.groups), width))[1][costs.computes]) == {grade}


def test_the_table_predicts_a_clock_that_it_has_measured(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured)
    graph, cost_model = problem.graph, problem.cost_model
    assert cost_model.predict_all(frozenset(), graph.full)["latency"] == pytest.approx(TEACHER_MS)
    rng, errors = np.random.default_rng(1), []
    for _ in range(10):
        network = graph.view(frozenset(u for u in graph.blocks if rng.random() < 0.3))
        widths = rng.integers(graph.full // 3, graph.full + 1)
        true = TEACHER_MS * network.macs(widths) / network.graph.view(frozenset()).macs(graph.full)
        errors.append(cost_model.predict("latency", network, widths) / true - 1)
    assert np.sqrt(np.mean(np.square(errors))) < 0.1


def test_a_second_environment_measures_nothing(quick, monkeypatch, tmp_path):
    first = made_up_problem(monkeypatch, tmp_path, name="resnet8-digits")
    _, plan, _, usage = play(first, {"latency": 0.5 * TEACHER_MS})
    second = made_up_problem(monkeypatch, tmp_path, name="resnet8-digits")
    assert first.clock.nodes_measured > 0
    again = play(second, {"latency": 0.5 * TEACHER_MS})
    assert (again[1], again[3]) == (plan, usage)
    assert second.clock.nodes_measured == second.clock.pairs_measured == 0


def test_other_teachers_runtimes_and_versions_have_their_own_files(monkeypatch):
    _, _, graph = network_of("resnet8-digits")
    _, _, other = network_of("resnet8-digits", channel_multiple=8)
    paths = {latency_cache.LatencyCache(g, s).plans_path for g in (graph, other) for s in (RuntimeConfig(), RuntimeConfig(batch=2))}
    assert len(paths) == 4
    assert latency_cache.LatencyCache(network_of("resnet8-digits")[2], RuntimeConfig()).plans_path in paths  # other weights
    monkeypatch.setattr(latency_cache, "version", lambda name: "0")
    assert latency_cache.LatencyCache(graph, RuntimeConfig()).plans_path not in paths


@pytest.mark.parametrize("damage", ["", '{"table": {}}', '{"table": {"teacher_ms": 1, "weights": [1], "points": {}}}'])
def test_a_damaged_cache_is_measured_again(damage, quick, monkeypatch, tmp_path):
    problem = made_up_problem(monkeypatch, tmp_path, name="resnet8-digits")
    for path in (tmp_path / "latency").iterdir():
        path.write_text(damage)
    with pytest.warns(UserWarning, match="in the cache is damaged"):
        again = made_up_problem(monkeypatch, tmp_path, name="resnet8-digits")
    assert again.clock.nodes_measured > 0 and again.cost_model.teacher == problem.cost_model.teacher


def test_a_cache_that_cannot_be_written_costs_nothing_else(quick, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    problem = made_up_problem(monkeypatch, tmp_path / "file", name="resnet8-digits")
    assert problem.cost_model.teacher["latency"] == TEACHER_MS


# Repair


@pytest.mark.parametrize(("power", "share"), [(0.7, 0.5), (1.0, 0.75), (1.4, 0.35)])
def test_students_end_within_five_points_of_the_budget_though_predictions_are_wrong(
    power, share, monkeypatch, measured
):
    problem = made_up_problem(monkeypatch, measured, power)
    rng = np.random.default_rng(0)
    for act in (lambda: (0.0, 0.0), lambda: (1.0, rng.uniform(-1, 0.3))):
        episode, plan, student, usage = play(problem, {"latency": share * TEACHER_MS}, act)
        assert usage["latency"] == problem.cost_model.count(student, plan)["latency"]
        assert share - 0.05 <= usage["latency"] / TEACHER_MS <= share


def test_a_policy_that_wishes_for_less_gets_no_more(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured, 1.3)  # students take less than predicted
    limits = {"latency": 0.9 * TEACHER_MS}
    episode, plan, _, usage = play(problem, limits, lambda: (1.0, 0.5))
    wished = problem.cost_model.predict("latency", problem.graph.view(episode.removed), episode.widths)
    assert wished < 0.6 * limits["latency"] and usage["latency"] <= wished


def test_other_limits_hold_while_a_student_grows(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured, 1.4)
    limits = {"latency": 0.6 * TEACHER_MS, "params": 0.62 * problem.cost_model.teacher["params"]}
    _, _, student, usage = play(problem, limits)
    assert usage["params"] == sum(p.numel() for p in student.parameters()) <= limits["params"]
    assert usage["latency"] <= limits["latency"]


def test_if_nothing_fits_the_completion_does(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured)
    monkeypatch.setattr(repair, "ROUNDS", 1)
    limits = {"latency": 0.5 * TEACHER_MS}
    walk = Walk(problem, limits)
    while not walk.done:
        walk.step(0.0, 0.0)
    problem.clock.power = 0.01  # all of a sudden, everything takes as long as the teacher
    plan, _, usage = problem.finish(walk.removed, walk.widths, limits)
    assert usage == problem.feasible_completion(limits).usage and usage["latency"] <= limits["latency"]


def test_units_go_where_even_the_smallest_widths_take_too_long(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured, each=0.055)
    share = 0.5
    episode, plan, student, usage = play(problem, {"latency": share * TEACHER_MS})
    narrowest = problem.graph.canonical(episode.removed, problem.graph.floor)
    smallest = build_student(problem.teacher.module, problem.graph, narrowest)
    assert problem.clock.pair(smallest).ratio > share  # the policy's blocks cannot all stay
    assert len(episode.removed) < len(plan.removed) < len(problem.completions[0].removed)
    assert share - 0.05 <= usage["latency"] / TEACHER_MS <= share


def test_a_student_near_the_limit_is_measured_twice(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured)
    noise = iter([0.48, 0.52] + [0.475] * 20)
    monkeypatch.setattr(problem.clock, "pair", lambda *_: Paired(r := next(noise), r, r, (r, 1.0), 15))
    _, plan, student, usage = play(problem, {"latency": 0.5 * TEACHER_MS})
    assert usage["latency"] == pytest.approx(0.475 * TEACHER_MS)  # the first one was only lucky


def test_a_recorded_latency_is_taken_up_again(monkeypatch, measured):
    problem = made_up_problem(monkeypatch, measured)
    graph, cost_model = problem.graph, problem.cost_model
    plan = graph.canonical(frozenset(), graph.full // 2)
    recorded = dict(cost_model.teacher, latency=3.0)
    cost_model.remember(plan, recorded, dict(cost_model.teacher))
    assert cost_model.count(build_student(problem.teacher.module, graph, plan), plan)["latency"] == 3.0
    cost_model.remember(plan, recorded, dict(cost_model.teacher, latency=2 * TEACHER_MS))  # another machine's milliseconds
    assert cost_model.count(build_student(problem.teacher.module, graph, plan), plan)["latency"] == 1.5


def test_the_environment_measures_in_its_runtime_and_remembers(quick):
    objective = Objective(EnvironmentSpec.of_keywords(budget={"latency": 0.8}, runtime="onnxruntime"))
    problem, walk = objective.problem, objective.begin(objective.budgets(1)[0])
    assert problem.runtime == problem.cost_model.runtime == RuntimeConfig("onnxruntime")
    assert all(g.step == 8 for g in problem.graph.groups.values())
    while not walk.done:
        walk.step(0.0, 0.0)
    judged = objective.judge(walk)
    usage = judged.evaluation.usage
    assert judged.evaluation.meets(judged.limits) and usage["latency"] <= 0.8 * problem.cost_model.teacher["latency"]
    assert problem.built(judged.plan).usage == usage  # not measured again


def test_a_report_measures_latency_where_no_budget_did(monkeypatch):
    teacher, example, graph = network_of("resnet8-digits")
    monkeypatch.setattr(resource, "Stopwatch", lambda *_: MadeUp(example, graph.view(frozenset()).macs(graph.full)))
    cost_model, plan = CostModel(teacher, graph, example), graph.canonical(frozenset(), graph.full // 2)
    student = build_student(teacher, graph, plan)
    whole, usage = cost_model.compare(student, plan)
    assert "latency" not in cost_model.teacher and whole == cost_model.teacher | {"latency": TEACHER_MS}
    assert usage == cost_model.count(student, plan) | {"latency": TEACHER_MS * usage["macs"] / whole["macs"]}


# Command line


def test_inspect_says_what_was_measured(quick):
    command = ["inspect", "--resource", "latency", "--runtime", "eager", "--latency-batch", "2", "--latency-threads", "1"]
    printed = CliRunner().invoke(main, command, catch_exceptions=False).output
    assert re.search(r"latency +ms .*\nmeasured with: batch 2, PyTorch eager, 1 thread", printed)


def test_the_benchmark_says_what_was_measured_and_repeats_nothing(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "SECONDS", 0.1)
    out = tmp_path / "rows.jsonl"
    call = ["--teacher", "resnet8-digits", "--runtime", "eager", "--budget", "0.7", "--random-policies", "0", "--out", str(out)]
    first = CliRunner().invoke(benchmark, call, catch_exceptions=False)
    assert re.search(
        r"resnet8-digits, 1x8x8 \| batch 1, PyTorch eager, 1 thread \| 70% latency \| uniform", first.output
    )
    assert "50% macs" in first.output
    before = out.read_text()
    out.write_text(before + '{"torn')
    again = CliRunner().invoke(benchmark, call, catch_exceptions=False)
    assert again.output.splitlines()[-4:] == first.output.splitlines()[-4:] and out.read_text().startswith(before)
    rows = bench.read(out)
    assert [row["resource"] for row in rows] == ["latency", "macs"] and rows[0]["pairs"] >= 41
    holding = dict(rows[0], budget=0.5)
    assert [bench.holds(dict(holding, measured=m)) for m in (0.44, 0.46, 0.5, 0.51)] == [False, True, True, False]
    out.write_text('{"teacher": 1}\n')
    with pytest.raises(UserError, match="not a file of latency rows"):
        bench.read(out)


def test_a_run_records_what_latency_was_measured_with(quick, tmp_path):
    spec = EnvironmentSpec.of_keywords(budget={"latency": 0.9}, latency_batch=2)
    run_search(spec, SearchSpec("uniform", evaluations=1), tmp_path, progress=False)
    recorded = json.loads((tmp_path / "run.json").read_text())["environment"]["problem"]
    assert (recorded["runtime"], recorded["latency_batch"], recorded["latency_threads"]) == ("eager", 2, 1)
    other = EnvironmentSpec.of_keywords(budget={"latency": 0.9}, latency_batch=4)
    with pytest.raises(UserError, match="latency_batch"):
        run_search(other, SearchSpec("uniform", evaluations=1), tmp_path, resume=True, progress=False)
    again, _ = run_search(spec, SearchSpec("uniform", evaluations=1), tmp_path, resume=True, progress=False)
    assert len(again.trials()) == 1  # a resumed run arrives at the same trial, or it would have been refused


# Peak memory


@pytest.mark.parametrize("name", ["resnet8-digits", "resnet20-cifar10", "functional"])
def test_the_peak_of_activations_is_what_pytorch_holds_after_each_operator(name):
    teacher, example, graph = network_of(name)
    rng = np.random.default_rng(0)
    for widths in (graph.full, rng.integers(graph.floor, graph.full + 1)):
        student = build_student(teacher, graph, graph.canonical(frozenset(), widths))
        predicted = graph.view(frozenset()).activation_bytes(widths)
        after, within = allocated(student, example[:1])
        own = example[:1].numel() * 4  # the caller keeps the input, which is predicted up to its last use
        assert 0.999 * predicted <= after <= 1.001 * predicted + own
        assert (
            within >= after
        )  # what operators need while they run, as a convolution that unfolds its input, is not predicted


def allocated(module, example) -> tuple[int, int]:
    """The most bytes that PyTorch's allocator held after an operator, and at any time; the input is in, weights are not."""
    with torch.inference_mode():
        module(example)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            module(example)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    held = after = within = example.numel() * example.element_size()
    end = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            within = max(within, held)
        elif event.start_ns() >= end:  # an operator that is not part of another one
            end = event.start_ns() + event.duration_ns()
            inside = [e.nbytes() for e in events if e.name() == "[memory]" and event.start_ns() <= e.start_ns() <= end]
            after = max(after, held + sum(inside))
    return after, within
