"""Damaged and foreign files: a clear line that names the file and the line in it, and what is only a cache is computed again."""

from __future__ import annotations

import copy
import json
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import faults
import pytest
import torch

from compress_env import cache
from compress_env.agents.sb3 import off_policy
from compress_env.api import objective_of, run_search
from compress_env.bench import run as bench
from compress_env.distill.finetune import Finetuned
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.records import Damaged, record
from compress_env.report.page import write_report
from compress_env.report.parts import Parts
from compress_env.search import search
from compress_env.search.reopened import kept
from compress_env.search.result import NetworkResult, ResourceName, Result
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial
from compress_env.spec import EnvironmentSpec, EvaluatorSettings, ProblemSpec, SearchSpec

QUICK = {"budget": {"macs": 0.5}, "evaluator": {"calibration_images": 64, "validation_images": 100}}
DAMAGES: dict[str, Any] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "text": lambda content: b"hello\n",
    "list": lambda content: b"[]\n",
    "number": lambda content: b"3\n",
    "null": lambda content: b"null\n",
    "object": lambda content: b"{}\n",
    "nested": lambda content: b"[" * 100_000 + b"\n",
}
OTHERS: dict[str, Any] = {"null": None, "text": "x", "list": [1], "object": {"a": 1}, "NaN": math.nan, "huge": 10**400, "gone": ...}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The files of a finished run of digits, as they are read again; its outcome is made up."""
    out = tmp_path_factory.mktemp("run")
    folder, objective = run_search(EnvironmentSpec.of_keywords(**QUICK), SearchSpec("random", {}, 2, 0), out, progress=False)
    usage = dict(folder.trials()[0].evaluation.usage)
    network, done = NetworkResult(0.9, usage, 10), Finetuned(1, (0.8, 0.9), 1, 0.9, 0.9, 0.9)
    row = {"name": "conv", "kind": "conv", "before": 3, "after": 2, "status": "shrunk", "macs_before": 3.0, "macs_after": 2.0}
    names = {name: ResourceName.of(name) for name in usage}
    result = Result(
        "accuracy", network, network, names, "eager", {"macs": 1e6}, True, 2, 1.0, "random", 0, 0, None, done.to_json(),
        {"student.onnx": 1e-6}, (row,), {"torch": "2"},
    )  # fmt: skip
    folder.write("result.json", result.to_json())
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}, objective.problem


READERS = {
    "run.json": lambda folder: folder.spec(),
    "problem.json": lambda folder: objective_of(folder, False),
    "sensitivities.json": lambda folder: objective_of(folder, False),
    "parts.json": lambda folder: kept(folder, "parts.json", Parts.from_json),
    "trials.jsonl": lambda folder: folder.trials(),
    "result.json": lambda folder: folder.result(),
}


@pytest.fixture
def place(run, tmp_path, monkeypatch):
    """A run folder, whose problem is not traced anew each time."""
    files, problem = run
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def build(spec, measured=None, progress=False):
        if measured:
            problem.graph.ranked(measured.ranking)
        return problem

    monkeypatch.setattr(Problem, "build", build)
    return RunFolder(tmp_path)


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_damaged_file_of_a_run_is_named_in_one_line(name, place):
    path, original = place.path / name, (place.path / name).read_bytes()
    READERS[name](place)
    for damage, change in DAMAGES.items():
        path.write_bytes(change(original))
        if damage in ("empty", "cut") and name == "trials.jsonl":  # a crash did that: whole lines are read
            assert len(place.trials()) < 2
            continue
        with pytest.raises(UserError) as told:
            READERS[name](place)
        assert name in str(told.value), (damage, told.value)
    path.unlink()
    path.mkdir()
    if name == "trials.jsonl":
        with pytest.raises(UserError, match="cannot read .*trials.jsonl: Is a directory"):
            READERS[name](place)


def values(value: Any, at: tuple = ()) -> list[tuple]:
    """Places of all values within nested ones; of lists only the first entry."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [at, *(place for key, part in parts for place in values(part, (*at, key)))] if at else [
        place for key, part in parts for place in values(part, (key,))
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_value_of_another_type_is_refused_by_its_name_or_harmless(name, place):
    path = place.path / name
    lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
    whole, refused, harmless = json.loads(lines[0]), 0, []
    for where in values(whole):
        for other, value in OTHERS.items():
            changed = copy.deepcopy(whole)
            part = changed
            for key in where[:-1]:
                part = part[key]
            if value is ... and isinstance(part, list):
                continue
            if value is ...:
                del part[where[-1]]
            else:
                part[where[-1]] = value
            path.write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
            try:
                READERS[name](place)
                if name in ("trials.jsonl", "result.json") and other == "object":
                    write_report(place.path)
                harmless.append((where, other))
            except UserError as error:
                assert name in str(error) and (name != "trials.jsonl" or "line 1 of" in str(error)), (where, other, error)
                refused += 1
    assert refused > 2 * len(harmless) or name == "run.json", harmless


@dataclass(frozen=True)
class Row:
    """A row."""

    count: int
    share: float
    name: str
    sure: bool
    pairs: tuple[tuple[str, float], ...] = ()
    size: float | None = None


def test_records_are_checked_by_their_annotations():
    good = {"count": 1, "share": 1, "name": "a", "sure": True, "pairs": [["a", 0.5]]}
    assert record(Row, good) == Row(1, 1, "a", True, (("a", 0.5),)) and record(Row, good | {"size": None}).size is None
    for changed, told in (
        ({"count": True}, "'count' is True, not a whole number"),
        ({"count": 1.0}, "'count' is 1.0, not a whole number"),
        ({"share": math.inf}, "'share' is inf, not a finite number"),
        ({"share": "1"}, "'share' is '1', not a finite number"),
        ({"name": 3}, "'name' is 3, not a text"),
        ({"sure": 1}, "'sure' is 1, not true or false"),
        ({"pairs": "ab"}, "'pairs' is 'ab', not a list"),
        ({"pairs": [["a"]]}, r"'pairs\[0\]' has 1 entries, not 2"),
        ({"pairs": [["a", None]]}, r"'pairs\[0\]\[1\]' is None, not a finite number"),
        ({"other": 1}, "'other' is unknown"),
    ):
        with pytest.raises(Damaged, match=told):
            record(Row, good | changed)
    with pytest.raises(Damaged, match="'share' is missing"):
        record(Row, {"count": 1})
    with pytest.raises(Damaged, match="it is 3, not an object"):
        record(Row, 3)


def test_results_of_a_benchmark_are_checked_likewise(tmp_path):
    run = bench.Run("digits-25", "random", 0, 2, (0.1, 0.2), (0.1, 0.2), (1.0, 2.0), 0.1, None, ((0.5, 0.5),), "")
    file = bench.results(tmp_path / "results.jsonl")
    file.append(run)
    assert file.read() == [run]
    file.append(replace(run, best=(math.nan, 0.2)))
    with pytest.raises(UserError, match=r"line 2 of .*results.jsonl is damaged.*\('best\[0\]' is nan, not a finite number\)"):
        bench.load(tmp_path / "results.jsonl")


def test_a_damaged_checkpoint_of_an_agent_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(off_policy, "SAVE_AFTER", 0.0)
    monkeypatch.setattr("compress_env.search.run._save_policy", lambda *_: None)  # which takes seconds
    spec = EnvironmentSpec.of_keywords(teacher=faults.small(), data=faults.images(), budget={"macs": 0.6})
    first = Objective(spec)

    def found(evaluations: int) -> list[Trial]:
        objective = Objective(spec, problem=first.problem, sensitivities=first.sensitivities)
        return search(objective, "td3", evaluations, 1, tmp_path, False, {"gradient_steps": 1}).trials

    before = found(3)
    state = {"episodes": 3, "over": False, "dyna": None, "baseline": [0.0], "parameters": {"policy": {"a": torch.zeros(1)}}}
    for number, content in enumerate((b"", [1, 2], {"episodes": 2}, state)):
        path = tmp_path / "agent.checkpoint"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        again = found(4 + number)
        assert len(again) == 4 + number and all(a.same(b) for a, b in zip(before, again)), content
        before = again


def test_damaged_entries_of_the_cache_are_computed_again_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH", 0.0)
    problem = Problem.build(ProblemSpec(teacher=faults.small(), data=faults.images()))
    expected = Evaluator(problem, EvaluatorSettings()).teacher_outputs
    (file,) = cache.folder("logits").iterdir()
    good = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Evaluator(problem, EvaluatorSettings()).teacher_outputs, expected)
    other = {"short": {"": expected[:3]}, "name": {"a": expected}}
    for damage in ("empty", "cut", "text", *other):
        if damage in other:
            cache._write_tensors(file, other[damage])
        else:
            file.write_bytes(DAMAGES[damage](good))
        with pytest.warns(UserWarning, match=f"{file.name} in the cache is damaged .*; it is computed again"):
            assert torch.equal(Evaluator(problem, EvaluatorSettings()).teacher_outputs, expected)
        assert file.read_bytes() == good
    objective = Objective(EnvironmentSpec.of_keywords(teacher=faults.small(), data=faults.images()), problem=problem)
    found = objective.sensitivities
    (kept,) = cache.folder("sensitivities").iterdir()
    for data in ({}, found.to_json() | {"blocks": {}}, found.to_json() | {"seconds": "x"}):
        kept.write_text(json.dumps(data))
        again = Objective(objective.spec, problem=objective.problem, evaluator=objective.evaluator)
        with pytest.warns(UserWarning, match="in the cache is damaged"):
            assert again.sensitivities == found
