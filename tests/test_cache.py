"""What is kept on disk: images decoded once, read again if a file changes; what a teacher says of the images."""

from __future__ import annotations

import copy
import os

import pytest
import sklearn.datasets
import torch

from compress_env import cache
from compress_env.data import load_data
from compress_env.data.image_cache import decoded
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.teachers import load_teacher


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Three files, and where images are kept, however quickly they were read."""
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH", 0.0)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(path.encode())
    return paths, tmp_path / "cache" / "images"


class Reader:
    """Other images each time, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return torch.full((3, 3, 2, 2), self.calls, dtype=torch.uint8)


def test_images_are_read_once_until_a_file_changes(kept):
    paths, _ = kept
    read = Reader()
    for _ in range(2):
        assert torch.equal(decoded(paths, None, read), torch.full((3, 3, 2, 2), 1, dtype=torch.uint8))
    assert read.calls == 1
    decoded(paths, 2, read)  # of another size
    os.utime(paths[1], ns=(1, 1))
    decoded(paths, None, read)
    assert read.calls == 3


def test_what_is_damaged_is_read_again_and_what_is_quick_is_not_kept(kept, monkeypatch):
    paths, where = kept
    read = Reader()
    decoded(paths, None, read)
    (file,) = where.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    decoded(paths, None, read)
    decoded(paths, None, read)
    assert read.calls == 2
    file.unlink()
    monkeypatch.setattr(cache, "WORTH", 60.0)
    decoded(paths, None, read)
    assert read.calls == 3 and not any(where.iterdir())


def test_digits_are_read_from_their_package_once_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH", 0.0)
    first = load_data("digits")
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: pytest.fail("they are read again"))
    again = load_data("digits")
    for part in ("train", "validation", "test"):
        one, other = getattr(first, part), getattr(again, part)
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)


def test_what_was_longest_not_used_goes_first(tmp_path):
    for i in range(4):
        (tmp_path / str(i)).write_bytes(bytes(100))
        os.utime(tmp_path / str(i), (i, i))
    os.utime(tmp_path / "0", (9, 9))
    cache.make_room(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "3"]


def test_a_folder_that_cannot_be_written_costs_only_time(kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "file"))
    read = Reader()
    decoded(kept[0], None, read)
    decoded(kept[0], None, read)
    assert read.calls == 2


def test_what_depends_on_the_teacher_alone_is_computed_once_and_again_for_other_weights_or_images(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH", 0.0)
    teacher, data = load_teacher("resnet8-digits").module, load_data("digits")

    def judge(teacher, data):
        problem = Problem.build(ProblemSpec(teacher=teacher, data=data))
        evaluator = Evaluator(problem, EvaluatorSettings(calibration_images=64))
        return problem.ranking.id, evaluator.teacher_outputs

    def kept():
        return [len(list((tmp_path / kind).iterdir())) for kind in ("channels", "logits")]

    orders, logits = judge(teacher, data)
    again, same = judge(teacher, data)
    assert again == orders and torch.equal(same, logits) and kept() == [1, 1]
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.fc.weight *= -1
    assert not torch.equal(judge(other, data)[1], logits) and kept() == [2, 2]
    fewer = data.head(500)
    judge(teacher, fewer)
    assert kept() == [3, 2]


@pytest.mark.parametrize("damage", [None, "", "[1]", '{"x": "text"}'])
def test_plain_values_are_computed_once_and_again_if_damaged(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    computed = []

    def value():
        return cache.values("kind", "key", lambda: computed.append(1) or {"x": 2.5}, lambda data: float(data["x"]))

    assert value() == value() == 2.5 and len(computed) == 1
    if damage is not None:
        (tmp_path / "kind" / "key.json").write_text(damage)
        assert value() == value() == 2.5 and len(computed) == 2
