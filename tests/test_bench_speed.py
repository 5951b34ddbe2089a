"""`python -m benchmarks.speed` on digits: its parts agree with each other, and what it times is as before afterwards."""

from __future__ import annotations

import json
from time import thread_time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.speed import search_cost
from benchmarks.speed.__main__ import main
from benchmarks.speed.measure import EVALUATION, STAGES, CallTimer, table
from benchmarks.speed.training import CPU, lines
from compress_env.devices import has_bfloat16


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The numbers, the printed lines, and the timed functions before."""
    before = [getattr(owner, attribute) for owner, attribute, _ in STAGES]
    file = tmp_path_factory.mktemp("speed") / "speed.json"
    result = CliRunner().invoke(main, ["--seconds", "0.3", "--evaluations", "20", "--out", str(file)])
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text()), result.stdout, before


def test_the_printed_table_is_that_of_the_numbers(measured):
    numbers, printed, _ = measured
    assert printed.splitlines() == [*table(numbers), "", *lines(numbers["training"]), "", search_cost.line(numbers["search"])]
    assert numbers["teacher"] == "resnet8-digits" and numbers["data"] == "digits" and numbers["steps"] == 9


def test_every_stage_is_measured_and_what_is_timed_is_as_before(measured):
    numbers, _, before = measured
    stages = numbers["profile"]["stages"]
    evaluation = sum(stages[name] for name in EVALUATION)
    assert all(stages[name] > 0 for name in stages if name != "distil")
    assert numbers["profile"]["not_evaluation"] == pytest.approx(1 - evaluation / sum(stages.values()))
    assert min(numbers["decisions"].values()) > 0
    per_episode = numbers["steps"] / numbers["decisions"]["without"]
    assert per_episode / 10 < stages["decisions"] < per_episode * 10  # two measurements of one thing
    assert [getattr(owner, attribute) for owner, attribute, _ in STAGES] == before
    assert 0 < numbers["plans"]["together"] < numbers["plans"]["alone"]


def test_a_search_is_put_beside_the_teachers_training(measured):
    cost = measured[0]["search"]
    assert (cost["agent"], cost["evaluations"]) == ("model", 20)
    assert cost["search"] > 20 * measured[0]["profile"]["seconds"] / 10
    assert cost["training"] > 60 * measured[0]["build"]["forward of 32"]  # 60 epochs of 15 batches of 64
    unknown = SimpleNamespace(problem=SimpleNamespace(teacher=SimpleNamespace(name="my.py:net")))
    assert search_cost.search_cost(unknown, "ddpg", 1, 0, False) is None


def test_a_step_of_training_is_timed_in_every_precision_that_the_processor_has(measured):
    times = measured[0]["training"]
    assert len(times) == (3 if has_bfloat16(CPU) else 1)
    assert times["float32"] > measured[0]["build"]["forward of 32"]  # 128 images, forward and backward


def test_peers_make_the_same_candidate_and_refitting_is_what_makes_it_good(measured):
    ways = {row["way"]: row for row in measured[0]["peers"]}
    ours, refitted = ways["build"], ways["build and refit"]
    library, anew = ways["deepcopy and torch-pruning"], ways["random weights, 5 epochs"]
    assert library["metric"] == pytest.approx(ours["metric"], abs=0.02)  # the same channels of the same weights
    assert refitted["metric"] > ours["metric"] + 0.3
    assert anew["seconds"] > 2 * refitted["seconds"] and anew["epochs"] in (1, 5)


def test_a_stopwatch_counts_each_function_without_what_it_calls():
    class Work:
        def outer(self):
            burn(0.02)
            self.inner()

        def inner(self):
            burn(0.04)

    def burn(seconds: float) -> None:
        end = thread_time() + seconds
        while thread_time() < end:
            pass

    watch, outer = CallTimer(), Work.outer
    with watch.timing([(Work, "outer", "outer"), (Work, "inner", "inner")]):
        Work().outer()
    assert watch.seconds["outer"] == pytest.approx(0.02, rel=0.3) and watch.seconds["inner"] == pytest.approx(
        0.04, rel=0.3
    )
    assert Work.outer is outer
