"""The experiment on shallow students trains what it says, goes on where it stopped, and shows each loss at its best rate."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from benchmarks.distillation import Trained, main, student, table, train
from compress_env.data import load_data
from compress_env.files import JsonLines
from compress_env.teachers import load_teacher


@pytest.fixture(scope="module")
def data():
    return load_data("digits").head(128)


def test_students_have_their_depth_and_about_as_many_parameters(data):
    before = torch.get_rng_state()
    made = [student(data, depth, 20_000, 0) for depth in (1, 2, 3, 4)]
    assert torch.equal(before, torch.get_rng_state())
    for depth, network in enumerate(made, 1):
        assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == depth
        assert 0.85 * 20_000 <= sum(p.numel() for p in network.parameters()) <= 20_000
        assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    again, other = student(data, 2, 20_000, 0), student(data, 2, 20_000, 1)
    assert torch.equal(again.head[0].weight, made[1].head[0].weight) and not torch.equal(other.head[0].weight, again.head[0].weight)


def test_an_interrupted_experiment_goes_on_to_the_same_rows(data, tmp_path):
    results = JsonLines(tmp_path / "rows.jsonl", Trained, header=True)
    results.begin({"epochs": 1})
    arguments = (load_teacher("resnet8-digits").module, data, 5_000, 1, (1,), ("labels", "mimic"), (0.02,), (0,), results)
    rows = train(*arguments, progress=False)
    assert [(r.depth, r.loss, r.lr, r.seed) for r in rows] == [(1, "labels", 0.02, 0), (1, "mimic", 0.002, 0)]
    text = results.path.read_text()
    results.path.write_text(text[: text.rindex("{") + 9])
    assert train(*arguments, progress=False) == rows and results.path.read_text() == text
    shown = CliRunner().invoke(main, ["--show", "--out", str(results.path)])
    assert shown.output == table(rows) + "\n"


def test_the_table_has_each_loss_at_its_best_rate_and_the_gain_over_the_same_seeds():
    def row(loss: str, lr: float, seed: int, validation: float, test: float) -> Trained:
        return Trained(1, loss, lr, seed, 5_000, validation, test)

    text = table([
        row("labels", 0.1, 0, 0.8, 0.70), row("labels", 0.1, 1, 0.8, 0.72), row("labels", 0.2, 0, 0.7, 0.99),
        row("hinton", 0.1, 0, 0.8, 0.99), row("hinton", 0.2, 0, 0.9, 0.73), row("hinton", 0.2, 1, 0.9, 0.77),
    ])  # fmt: skip
    assert "| 1 | 5,000 | labels | 0.1 | 71.00 % ± 1.00 |  |" in text
    assert "| 1 | 5,000 | hinton | 0.2 | 75.00 % ± 2.00 | +4.00 ± 1.00 |" in text
