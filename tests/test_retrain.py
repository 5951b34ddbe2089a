"""Winners of a benchmark distilled with fresh seeds: once each, beside the results, and in the report."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import retrain
from compress_env.bench import run as bench
from compress_env.bench.report import write
from compress_env.bench.retrained import Retrained, path_of, records
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import finetuning_recipe
from compress_env.errors import UserError
from compress_env.surgery.plan import Plan


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results file as `bench run` writes it: two searches of two agents on the digits, and one scenario without images."""
    path = tmp_path_factory.mktemp("retrain") / "results.jsonl"
    runs = []
    for scenario in ("digits-25", "planted"):
        for agent in ("uniform", "random"):
            for seed in (0, 1):
                folder = path.parent / scenario / agent / str(seed)
                runs.append(bench.one(scenario, agent, seed, 3, None, folder))
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in runs))
    return path


def test_winners_are_distilled_once_with_fresh_seeds_and_reported(results):
    command = ["--results", str(results.parent), "--epochs", "1", "--seeds", "2"]
    done = CliRunner().invoke(retrain.main, command)
    assert done.exit_code == 0 and "planted is left out" in done.output, done.output
    path = path_of(results)
    text = path.read_text()
    rows = records(results).read()
    winners = {(r.plan, 1000 + r.seed) for r in bench.results(results).read() if r.scenario == "digits-25"}
    assert {(r.plan, r.seed) for r in rows} == winners and len(rows) == len(winners)
    assert {r.scenario for r in rows} == {"digits-25"} and all(r.test > 0.5 and r.epochs == 1 for r in rows)

    objective = bench.objective("digits-25", None)
    problem = objective.problem
    recipe = finetuning_recipe(len(problem.data.train), 1, problem.device)
    student = objective.evaluator.prepared(Plan.from_json(rows[-1].plan))
    done = finetune(student, problem.whole, problem.data, recipe, problem.task, seed=rows[-1].seed, progress=False)
    assert done.metric_test == rows[-1].test

    path.write_text(text[:-40])  # killed while it wrote the last line
    assert retrain.retrain(results, 1, 2, progress=False) == rows and path.read_text() == text
    report = write(results, results.parent / "report", "command")
    for agent in ("uniform", "random"):
        plans = {r.seed: r.plan for r in bench.results(results).read() if (r.scenario, r.agent) == ("digits-25", agent)}
        tests = [next(r.test for r in rows if (r.plan, r.seed) == (plans[s], 1000 + s)) for s in (0, 1)]
        line = next(x for x in report.splitlines() if x.startswith(f"| {agent} ") and x.endswith("(2) |"))
        assert line.endswith(f"| {np.mean(tests):.2%} (2) |")  # two give no interval
    assert report.count("1 epochs of distillation") == 1  # the planted scenario has no such column


def test_what_cannot_be_distilled_is_refused(results, tmp_path):
    with pytest.raises(UserError, match="was begun with 1 epochs, not 2"):
        path_of(tmp_path / "x.jsonl").write_text(json.dumps(_row()) + "\n")
        (tmp_path / "x.jsonl").write_text(results.read_text())
        retrain.retrain(tmp_path / "x.jsonl", 2, 1, progress=False)
    with pytest.raises(UserError, match="no agent 'ddpg' in .*it has random, uniform"):
        retrain.retrain(results, 1, 1, agents=["ddpg"], progress=False)
    old = [json.loads(line) for line in results.read_text().splitlines()]
    (tmp_path / "old.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "plan"}) + "\n" for r in old)
    )
    with pytest.raises(UserError, match="was written by another version .*'plan'"):
        retrain.retrain(tmp_path / "old.jsonl", 1, 1, progress=False)


def _row():
    return asdict(Retrained("digits-25", "", 1000, 1, 0.1, 0.1, 0.9, 0.9, 1))
