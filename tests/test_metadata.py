"""Who is given a student finds in its files what it takes, what it gives, and where it comes from."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from test_cli import works

from compress_env.data import load_data, make_data
from compress_env.data.dataset import Split

NET = """
from torch import nn
def make(): return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on a folder with classes of unequal size."""
    place, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, counts in (("train", (20, 20, 20)), ("test", (12, 3, 6))):
        for name, count in zip(("ant", "bee", "cat"), counts):
            (place / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place / part / name / f"{i}.png")
    (place / "net.py").write_text(NET)
    numbers = [",".join(map(str, values)) for values in (MEAN, STD)]
    out = place / "run"
    printed = works(
        "search", "--teacher", f"{place}/net.py:make", "--data", f"imagefolder:{place}", "--mean", numbers[0], "--std", numbers[1],
        "--budget", "macs=60%", "--agent", "uniform", "--evaluations", 1, "--finetune-epochs", 1, "--out", out,
    )  # fmt: skip
    return out, printed, json.loads((out / "result.json").read_text())


def test_onnx_pt2_and_result_say_the_same(run):
    out, _, result = run
    said = onnxruntime.InferenceSession(out / "student.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(said["class_names"]) == ["ant", "bee", "cat"] and json.loads(said["input_shape"]) == [3, 8, 8]
    assert json.loads(said["mean"]) == list(MEAN) and json.loads(said["std"]) == list(STD)
    assert said["teacher"] == "net.py:make" and said["data"] == out.parent.name  # no path of this machine
    assert json.loads(said["budget"]) == result["budget"]
    plan = json.loads((out / "trials.jsonl").read_text())["plan"]
    assert said["plan"] and json.loads((out / "plan.json").read_text()) == plan
    texts = ("teacher", "data", "plan")
    assert {name: value if name in texts else json.loads(value) for name, value in said.items()} == result["metadata"]
    extra = {"metadata.json": ""}
    torch.export.load(out / "student.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == result["metadata"]


def test_the_file_alone_is_enough_to_use_the_student(run):
    out, _, result = run
    session = onnxruntime.InferenceSession(out / "student.onnx")
    said = {k: v for k, v in session.get_modelmeta().custom_metadata_map.items()}
    mean, std = (np.array(json.loads(said[name]), np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
    names, right = json.loads(said["class_names"]), {}
    for name in names:
        files = sorted((out.parent / "test" / name).iterdir())
        images = np.array([np.asarray(Image.open(f)) for f in files], np.float32).transpose(0, 3, 1, 2) / 255
        answers = session.run(None, {"input": ((images - mean) / std).astype(np.float32)})[0].argmax(1)
        right[name] = [names[i] == name for i in answers]
    for row in result["by_class"]:
        assert row["examples"] == len(right[row["class"]]) and row["student"] == pytest.approx(np.mean(right[row["class"]]))
    assert result["student"]["metric_test"] == pytest.approx(np.mean(sum(right.values(), [])))


def test_classes_of_unequal_size_are_reported(run):
    _, printed, result = run
    assert [row["examples"] for row in result["by_class"]] == [12, 3, 6]
    assert sum(r["examples"] * r["teacher"] for r in result["by_class"]) / 21 == pytest.approx(result["teacher"]["metric_test"])
    assert "least right class: " in printed


def test_an_export_elsewhere_has_it_too(run, tmp_path):
    out, _, result = run
    works("export", "--trust", "--out", out, "--onnx", tmp_path / "a.onnx")
    said = onnxruntime.InferenceSession(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    assert said.keys() == result["metadata"].keys()


def test_names_of_classes_come_from_the_data():
    assert load_data("digits").class_names == tuple("0123456789")
    split = Split(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.arange(40) % 2)
    assert make_data("mine", split, split, class_names=["a", "b"]).class_names == ("a", "b")

    class Set(torch.utils.data.Dataset):
        classes = ["x", "y"]

        def __len__(self):
            return 40

        def __getitem__(self, i):
            if not 0 <= i < 40:
                raise IndexError
            return torch.zeros(1, 4, 4), i % 2

    assert load_data((Set(), Set())).class_names == ("x", "y")
