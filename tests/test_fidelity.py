"""Whether quick scores predict distilled accuracy: plans, truths that resume, scores, statistics and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from benchmarks.fidelity import report, rerank, scores
from benchmarks.fidelity import truths as fidelity
from benchmarks.fidelity.__main__ import main
from benchmarks.losses import compare as losses
from compress_env.errors import UserError
from compress_env.problem import Problem
from compress_env.spec import ProblemSpec
from compress_env.surgery.plan import Plan

RESULTS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def problem():
    return Problem.build(ProblemSpec())


def test_correlations_are_those_of_scipy_also_with_ties():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40).round(1)
    y = (x + rng.normal(size=40)).round(1)
    found = report.agreement(x, y)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    low, high = found.spearman_interval
    assert low < found.spearman < high
    reference = stats.bootstrap(
        (x, y), lambda a, b: stats.pearsonr(a, b).statistic, paired=True, vectorized=False, method="percentile", n_resamples=500
    ).confidence_interval  # fmt: skip
    assert found.pearson_interval == pytest.approx(tuple(reference), abs=0.08)


def test_regret_and_the_limits_of_agreement():
    truths = [0.5, 0.9, 0.7, 0.6]
    assert report.agreement([1, 2, 4, 3], truths).regret == pytest.approx(0.2)
    same = report.agreement(truths, truths)
    assert same.spearman == same.kendall == same.pearson == pytest.approx(1) and same.regret == 0
    constant = report.agreement([0.1] * 4, truths)
    assert constant.spearman == constant.kendall == constant.pearson == 0
    with pytest.raises(ValueError, match="at least three"):
        report.agreement([1, 2], [1, 2])


def test_plans_spend_the_budget_differ_and_are_a_prefix_of_more_plans(problem):
    plans = fidelity.draw(problem, 0.5, 12, seed=3)
    assert plans[:5] == fidelity.draw(problem, 0.5, 5, seed=3)
    assert len({p.key for p in plans}) == 12 and fidelity.draw(problem, 0.5, 5, seed=4) != plans[:5]
    for plan in plans:
        share = problem.built(plan).usage["macs"] / problem.cost_model.teacher["macs"]
        assert 0.95 * 0.5 <= share <= 0.5
    assert any(p.removed for p in plans) and any(not p.removed for p in plans)


def test_truths_resume_where_they_were_cut_off_and_leave_the_teacher_alone(problem, tmp_path):
    before = {k: v.clone() for k, v in problem.whole.state_dict().items()}
    path = tmp_path / "truths.jsonl"
    settings, whole = fidelity.truths(problem, path, {0.5: 2, 0.25: 1}, passes=1, lr=0.02, progress=False)
    assert [(t.budget, t.index) for t in whole] == [(0.5, 0), (0.25, 0), (0.5, 1)]
    assert all(t.metric > 0.5 and t.steps == 15 for t in whole) and settings["passes"] == 1
    text = path.read_text()
    path.write_text(text[:-30])  # killed while it wrote the last line
    _, again = fidelity.truths(problem, path, {0.5: 2, 0.25: 1}, progress=False)
    values = [(t.plan, t.metric, t.kl, t.agreement, t.metric_start) for t in whole]
    assert [(t.plan, t.metric, t.kl, t.agreement, t.metric_start) for t in again] == values
    assert path.read_text().split("\n")[:3] == text.split("\n")[:3]  # what was there is not made again
    assert fidelity.truths(problem, path, progress=False)[1] == again
    with pytest.raises(UserError, match="was made with passes 1, not 2"):
        fidelity.truths(problem, path, passes=2, progress=False)
    path.write_text(path.read_text().replace(settings["weights"], "0" * 16))
    with pytest.raises(UserError, match="was made with weights '0+', not '[0-9a-f]+'"):
        fidelity.truths(problem, path, progress=False)  # of a teacher that was trained again
    assert all(torch.equal(v, problem.whole.state_dict()[k]) for k, v in before.items())


def test_plans_are_scored_once_and_the_report_says_how_well(problem, tmp_path):
    settings, truths = fidelity.truths(problem, tmp_path / "t.jsonl", {0.5: 3, 0.25: 3}, lr=0.02, progress=False)
    few = {"sliced": {"refit": False}, "default": {}}
    path = tmp_path / "scores.jsonl"
    first = scores.score(problem, truths, path, few, progress=False)
    lines = path.read_text()
    assert len(first) == 12 == lines.count("\n")
    assert scores.score(problem, truths, path, few, progress=False) == first and path.read_text() == lines
    path.write_text(lines[:-20])
    again = scores.score(problem, truths, path, few, progress=False)
    assert [(s.evaluator, s.index, s.metric, s.kl) for s in again] == [
        (s.evaluator, s.index, s.metric, s.kl) for s in first
    ]
    changed = scores.score(problem, truths, path, {"default": {"calibration_images": 64}}, progress=False)
    assert len(changed) == 6 and all(
        s.settings["calibration_images"] == 64 for s in changed
    )  # other settings, scored anew
    seconds = scores.distillation_seconds(problem, truths, settings)
    assert set(seconds) == {0.5, 0.25} and min(seconds.values()) > 0
    free = scores.training_free(problem, 0, count=5)
    assert free["teacher"][0] == pytest.approx(0.984, abs=0.02)
    assert free["refit"][0] > free["magnitude"][0]
    sizes = scores.sizes(problem, truths)
    student = problem.student(Plan.from_json(truths[0].plan))
    assert sizes[truths[0].plan] == sum(p.numel() for p in student.parameters()) / problem.cost_model.teacher["params"]
    text = report.write(tmp_path, "digits", truths, again, sizes, seconds, free)
    assert (tmp_path / "fidelity.md").read_text() == text and (tmp_path / "fidelity.png").stat().st_size > 5000
    assert text.count("| default | 50% | 3 |") == 1 and text.count("| sliced, by KL | 25% | 3 |") == 1


def test_a_choice_by_score_is_compared_with_one_after_a_short_distillation():
    scores_, short, truth = (0.9, 0.8, 0.7, 0.1), (0.5, 0.7, 0.6, 0.9), (0.60, 0.70, 0.65, 0.80)
    plans = [rerank.Judged(0.5, a, b, 1 - b, c) for a, b, c in zip(scores_, short, truth)]
    assert list(rerank.chosen(plans, 3).values()) == pytest.approx([0.60, 0.70, 0.70, 0.65, 0.80])
    text = rerank.table(plans, 3)
    lines = {line.split(" | ")[0]: line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")}
    assert lines["| the best score"] == "20.00" and lines["| of all, the most accurate after the short training"] == "0.00"
    assert "50% of the MACs, 4 plans: score -0.80, metric after the short one 1.00, its KL 1.00" in text
    with pytest.raises(UserError, match="4 plans at 50% of the MACs and 4 finalists; give more plans"):
        rerank.table(plans, 4)


def test_plans_are_distilled_again_for_a_shorter_time_once(problem, tmp_path):
    truths = tmp_path / "truths.jsonl"
    _, known = fidelity.truths(problem, truths, {0.25: 4}, passes=2, lr=0.02, progress=False)
    arguments = ["--truths", str(truths), "--short", str(tmp_path / "short.jsonl"), "--finalists", "2", "--plans", "3"]
    arguments += ["--longer", str(tmp_path / "longer.jsonl")]
    said = CliRunner().invoke(rerank.main, arguments, catch_exceptions=False).output
    short = fidelity.JsonLines(tmp_path / "short.jsonl", fidelity.Truth, header=True).read()
    assert [t.plan for t in short] == [t.plan for t in known[:3]] and {t.steps for t in short} == {15} == {known[0].steps // 2}
    assert "25% of the MACs, 3 plans: score" in said and [t.metric_start for t in short] == [t.metric_start for t in known[:3]]
    (longer,) = fidelity.JsonLines(tmp_path / "longer.jsonl", fidelity.Truth, header=True).read()
    assert longer.steps // 4 == 15 and longer.plan in {t.plan for t in short}
    assert f"{longer.metric:.2%} after 4, as many as with the short ones of 2" in said
    first, *rows = (tmp_path / "short.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "short.jsonl").write_text("".join([first, *reversed(rows)]))  # the order of the file makes no difference
    assert rerank.again(problem, known[:3], tmp_path / "short.jsonl", 1, 1) == short
    lines = [(tmp_path / f"{name}.jsonl").read_text() for name in ("short", "longer")]
    CliRunner().invoke(rerank.main, arguments, catch_exceptions=False)
    assert [(tmp_path / f"{name}.jsonl").read_text() for name in ("short", "longer")] == lines


def test_losses_are_compared_on_the_same_students(problem, tmp_path):
    path = tmp_path / "losses.jsonl"
    arguments = ({0.5: 2}, ["hinton", "mimic"], [0.01], 6, path)
    rows = losses.compare(problem, *arguments, progress=False)
    assert [(r.loss, r.index) for r in rows] == [("hinton", 0), ("mimic", 0), ("hinton", 1), ("mimic", 1)]
    text = path.read_text()
    path.write_text(text[: text.rindex("{")])
    again = losses.compare(problem, *arguments, progress=False)
    assert again == rows and path.read_text() == text
    means = {n: np.mean([r.metric for r in rows if r.loss == n]) for n in ("hinton", "mimic")}
    table = losses.table(rows)
    gap = 100 * (means["mimic"] - means["hinton"])
    assert f"| mimic | 0.01 | 2 | {means['mimic']:.2%} | {gap:+.2f} ±" in table and "| hinton | 0.01 | 2 |" in table
    with pytest.raises(UserError, match="was made with"):
        losses.compare(problem, {0.5: 2}, ["hinton"], [0.01], 7, path, progress=False)


def test_counts_of_plans_are_read_and_mistakes_named():
    assert fidelity.parse_counts(["0.5:40", "0.25:3"]) == {0.5: 40, 0.25: 3}
    for wrong in ("half:3", "0.5", "1.5:3", "0.5:0"):
        with pytest.raises(UserError, match=wrong):
            fidelity.parse_counts([wrong])


def test_committed_truths_are_those_of_this_teacher_and_recipe(problem):
    found = fidelity.JsonLines(RESULTS / "fidelity" / "resnet8-digits.jsonl", fidelity.Truth, header=True)
    settings, rows = found.settings, found.read()
    assert len(rows) == 200 and all(t.metric > 0.5 and t.agreement > 0.5 for t in rows)
    assert fidelity.settings_of(problem, settings["passes"], settings["recipe"]["lr"], settings["seed"]) == settings
    kept = losses.JsonLines(RESULTS / "losses" / "resnet20-cifar10.jsonl", losses.LossResult, header=True).read()
    assert "| hinton | " in losses.table(kept) and len(kept) == 96


def test_the_command_explains_itself():
    printed = CliRunner().invoke(main, ["--help"]).output
    assert "python -m benchmarks.fidelity --plans 0.5:100" in printed and "--truths" in printed
    wrong = CliRunner().invoke(main, ["--plans", "half:3", "--out", "x"])
    assert wrong.exit_code == 2 and "'half:3' is not SHARE:PLANS" in wrong.output
