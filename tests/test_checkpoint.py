"""Fine-tunings that are killed: wherever that happens, they end as if they had not been."""

from __future__ import annotations

import itertools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress_env.data import load_data
from compress_env.distill.checkpoint import Checkpoint
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import Recipe
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.tasks import load_task
from compress_env.teachers import load_teacher

RECIPE = Recipe(epochs=3, batch_size=64, lr=0.05)


@pytest.fixture(scope="module")
def trained():
    """A teacher, its data and graph."""
    teacher, data = load_teacher("resnet8-digits").module, load_data("digits")
    return teacher, data.head(400), trace(teacher, data.calibration(2))


def finetuned(trained, checkpoint=None):
    """What comes of a small student with dropout, which draws random numbers too: numbers and weights."""
    teacher, data, graph = trained
    student = build_student(teacher, graph, Plan.of((), {name: g.size // 2 for name, g in graph.groups.items()}))
    student = nn.Sequential(student, nn.Dropout(0.1)).eval()
    whole = build_student(teacher, graph, Plan())
    done = finetune(student, whole, data, RECIPE, load_task("classification"), seed=2, progress=False, checkpoint=checkpoint)
    return done, {k: v.clone() for k, v in student.state_dict().items()}


@pytest.mark.parametrize("when", range(12))
def test_a_finetuning_killed_at_any_write_ends_as_if_it_had_not_been(trained, tmp_path, monkeypatch, when):
    """Each epoch's checkpoint is written, synchronised and put in place; the process dies before, in, or after one of them."""
    expected, weights = finetuned(trained)
    step = itertools.count()

    def dying(function):
        def call(*args, **kwargs):
            if next(step) == when:
                if function is torch.save:
                    args[1].write(b"half")
                raise KeyboardInterrupt
            result = function(*args, **kwargs)
            if next(step) == when:
                raise KeyboardInterrupt
            return result

        return call

    path = tmp_path / "f.checkpoint"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch, "save", dying(torch.save))
        patched.setattr(Path, "replace", dying(Path.replace))
        finetuned(trained, path)
    assert {p.name for p in tmp_path.iterdir()} <= {path.name}
    done, found = finetuned(trained, path)
    assert done == expected and all(torch.equal(v, found[k]) for k, v in weights.items())
    assert not list(tmp_path.iterdir())


def test_a_finetuning_whose_process_is_killed_goes_on(trained, tmp_path):
    expected, weights = finetuned(trained)
    path = tmp_path / "f.checkpoint"
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                finetuned(trained, path)
            finally:
                os._exit(0)
        end = time.monotonic() + 60
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not (path.exists() and path.stat().st_mtime_ns != before) and time.monotonic() < end:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.exists()
    done, found = finetuned(trained, path)
    assert done == expected and all(torch.equal(v, found[k]) for k, v in weights.items())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other", "flipped"])
def test_a_checkpoint_that_cannot_be_used_is_said_and_the_training_starts_over(trained, tmp_path, damage):
    expected, _ = finetuned(trained)
    path = tmp_path / "f.checkpoint"
    student = build_student(trained[0], trained[2], Plan())
    recipe = RECIPE if damage != "other" else replace(RECIPE, lr=0.01)
    Checkpoint(path, student, recipe).save({}, torch.Generator(), 1, 1)
    content = path.read_bytes()
    if damage != "other":
        path.write_bytes(
            {"empty": b"", "cut": content[:-200], "text": b"hello", "flipped": content[:90] + b"xx" + content[92:]}[
                damage
            ]
        )
    with pytest.warns(
        UserWarning, match="the checkpoint .*f.checkpoint cannot be used, it is .*; the training starts over"
    ):
        done, _ = finetuned(trained, path)
    assert done == expected
