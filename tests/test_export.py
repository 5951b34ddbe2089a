"""Students as files: three formats that agree, need no code of ours where that is promised, and are written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile

import numpy as np
import onnx
import pytest
import torch
from networks import NETWORKS, random_plan
from torch import nn

from compress_env import export, progress
from compress_env.errors import UserError
from compress_env.export import ExportFailed, export_all, export_onnx, export_pt2, rebuild_student, save_student
from compress_env.surgery.build import build_student
from compress_env.surgery.trace import trace

STRANGER = """
import pickle, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not here")

BLOCKED = sys.argv[1].split(",")
sys.meta_path.insert(0, Blocker())
import numpy as np

inputs = np.load("inputs.npy", allow_pickle=False)

def check(run):
    for batch in (1, 5):
        expected = np.load("outputs.npy", allow_pickle=False)[:batch]
        assert np.abs(run(inputs[:batch]) - expected).max() <= 1e-4 * np.abs(expected).max()
"""
"""The start of a program on a machine without our package."""
WITH_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("student.onnx")
check(lambda x: session.run(["logits"], {"input": x})[0])
"""
WITH_TORCH = """
import torch

def refuse(*_, **__):
    raise AssertionError("something is unpickled")

torch.load = pickle.load = pickle.loads = refuse
pickle.Unpickler = type("Refusing", (pickle.Unpickler,), {"load": refuse})
module = torch.export.load("student.pt2").module()
check(lambda x: module(torch.from_numpy(x)).detach().numpy())
"""


@pytest.fixture(scope="module", params=["resnet8-digits", "vgg-bn", "functional"])
def exported(request, tmp_path_factory):
    """`(folder, teacher, graph, student, differences)` of a student in every format."""
    factory, shape = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher, example = factory().eval(), torch.randn(8, *shape)
    graph = trace(teacher, example)
    plan = random_plan(graph, np.random.default_rng(0), 0.3)
    student = build_student(teacher, graph, plan)
    folder = tmp_path_factory.mktemp("exported")
    save_student(student, plan, folder)
    differences = export_all(student, example, folder)
    np.save(folder / "inputs.npy", example.numpy())
    with torch.no_grad():
        np.save(folder / "outputs.npy", student(example).numpy())
    return folder, teacher, graph, student, differences


def test_all_formats_are_written_and_agree(exported):
    folder, *_, differences = exported
    assert differences.keys() == {"student.onnx", "student.pt2"}
    assert all(0 <= d <= 1e-4 for d in differences.values())
    files = {"plan.json", "student.safetensors", *differences, "inputs.npy", "outputs.npy"}
    assert {p.name for p in folder.iterdir()} == files


def test_plan_and_safetensors_rebuild_the_student_bit_for_bit(exported):
    folder, teacher, graph, student, _ = exported
    x = torch.from_numpy(np.load(folder / "inputs.npy"))
    with torch.no_grad():
        assert torch.equal(rebuild_student(teacher, graph, folder)(x), student(x))


@pytest.mark.parametrize("blocked, program", [
    ("compress_env,torch_pruning", WITH_TORCH),
    ("compress_env,torch", WITH_ONNX),
], ids=["torch.export", "onnx"])  # fmt: skip
def test_a_stranger_can_load_it_at_any_batch_size_without_our_code_or_unpickling(exported, blocked, program):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER + program, blocked],
        cwd=exported[0],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_archive_holds_no_pickle_no_numbers_of_the_example_and_no_path(exported):
    with zipfile.ZipFile(exported[0] / "student.pt2") as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    assert members["data/sample_inputs/model.pt"] == b""
    configs = [text for name, text in members.items() if name.endswith("config.json")]
    assert b'"use_pickle": false' in configs[0] and not any(b'"use_pickle": true' in text for text in configs)
    assert b"site-packages" not in members["models/model.json"] and b".py" not in members["models/model.json"]


def test_onnx_is_one_file_with_a_free_batch_and_no_path_of_this_machine(exported):
    model = onnx.load(exported[0] / "student.onnx", load_external_data=False)
    for tensor in (*model.graph.input, *model.graph.output):
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "site-packages" not in str(model)


# What goes wrong


class Noisy(nn.Module):
    """Never answers twice alike, so no export of it can agree."""

    def forward(self, x):
        return x.flatten(1) + torch.rand(10)


class Undecided(nn.Module):
    """Depends on the data, so it has no graph."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class OneBatch(nn.Module):
    """Turns the batch size into a number of its own."""

    def forward(self, x):
        return x.reshape(int(x.shape[0]), 10)


EXAMPLE = torch.randn(4, 10, 1, 1)


@pytest.mark.parametrize("write, name", [(export_onnx, "a.onnx"), (export_pt2, "a.pt2")])
@pytest.mark.parametrize("module, told", [
    (Noisy(), r"outputs differ from PyTorch's by \S+ of the largest, more than 0.0001"),
    (Undecided(), "cannot export to"),
    (OneBatch(), "works at one batch size only; plan.json and student.safetensors still rebuild the student"),
])  # fmt: skip
def test_a_failed_export_says_why_and_leaves_the_earlier_file(tmp_path, write, name, module, told):
    path = tmp_path / name
    path.write_text("earlier")
    with pytest.raises(ExportFailed, match=told) as caught:
        write(module, EXAMPLE, path)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [name] and path.read_text() == "earlier"


def test_a_run_is_not_lost_with_a_format_but_an_earlier_students_file_is(tmp_path):
    for name in export.FORMATS:
        (tmp_path / name).write_text("of an earlier student")
    with pytest.warns(UserWarning, match="cannot export to"):
        assert export_all(Undecided(), EXAMPLE, tmp_path) == {"student.onnx": None, "student.pt2": None}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write, name", [(export_onnx, "a.onnx"), (export_pt2, "a.pt2")])
def test_a_missing_folder_is_named_before_any_work(tmp_path, write, name):
    with pytest.raises(UserError, match=f"there is no folder {tmp_path / 'gone'}; make it first"):
        write(Noisy(), EXAMPLE, tmp_path / "gone" / name)


def test_a_name_that_torch_would_not_load_is_refused(tmp_path):
    with pytest.raises(UserError, match="a.bin: torch.export.load takes files that end in .pt2 only"):
        export_pt2(Noisy(), EXAMPLE, tmp_path / "a.bin")


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_a_plan_that_cannot_be_read_is_named(exported, tmp_path, text):
    _, teacher, graph, *_ = exported
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=f"cannot read the plan {tmp_path / 'plan.json'}"):
        rebuild_student(teacher, graph, tmp_path)


def test_only_what_takes_long_is_announced(capsys, monkeypatch):
    with progress.announced("quick"):
        pass
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with progress.announced("hidden", progress=False):
        time.sleep(0.05)
    with progress.announced("long"):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "long ...\n")
