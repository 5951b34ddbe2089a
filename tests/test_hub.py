"""Push and pull: the real client of the Hugging Face Hub against a hub of files in memory, whose repositories strangers fill, too."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import hub as hubs
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from onnx import TensorProto, helper, numpy_helper
from test_cli import refused, works
from test_policy_graph import external, model, saved
from torch import nn

import compress_env
from compress_env.agents.saved import load_policy
from compress_env.errors import UserError
from compress_env.hub.contents import LARGEST, LeftOut, without_folders
from compress_env.hub.transfer import prepared
from compress_env.teachers.resnet import resnet8_digits

FILES = {"README.md", "run.json", "problem.json", "plan.json", "result.json", "search.json", "student.safetensors", "student.onnx"}
INPUTS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return hubs.played(monkeypatch, tmp_path)


@pytest.fixture
def net(hub, finished):
    """The files of the finished run's repository, `me/net`."""
    compress_env.push_to_hub(finished[0], "me/net", progress=False)
    return hub.repositories["me/net"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_pushed_student_is_pulled_and_loaded_in_one_call(hub, finished, tmp_path):
    printed = works("push", finished[0], "--to", "me/net", "--private", "--license", "mit", "--quiet")
    assert printed == "https://huggingface.co/me/net\n"
    assert hub.private == {"me/net"} and hub.messages == ["Push a student of compress_env"]
    assert hub.repositories["me/net"].keys() == FILES
    assert hub.cards and hub.cards[0].encode() == hub.repositories["me/net"]["README.md"]
    printed = works("pull", "me/net", "--out", tmp_path / "a", "--quiet").splitlines()
    assert names(tmp_path / "a") == FILES and printed[1] == f"student: compress_env.load_student({str(tmp_path / 'a')!r})"
    expected = compress_env.load_student(finished[0])(INPUTS)
    assert torch.equal(compress_env.load_student(tmp_path / "a")(INPUTS), expected)
    assert "is no name" in refused("pull", "me/net?", "--out", tmp_path / "b")
    assert "has files; give a new or an empty folder" in refused("pull", "me/net", "--out", tmp_path / "a")


def test_the_card_has_the_numbers_of_the_result_and_nothing_else(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)  # which a look at it needs not
    printed = works("push", finished[0], "--to", "me/net", "--license", "mit", "--dry-run", tmp_path / "a")
    assert {Path(line.split()[0]).name for line in printed.splitlines()} == names(tmp_path / "a") == FILES
    result = json.loads((finished[0] / "result.json").read_text())
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert (card.data.license, card.data.library_name, card.data.metrics) == ("mit", "compress-env", ["accuracy"])
    (found,) = card.data.eval_results
    assert (found.metric_value, found.dataset_name) == (result["student"]["metric_test"], "digits")
    assert (found.task_type, found.dataset_split, card.data.model_name) == ("image-classification", "test", "net")
    rows = [line.split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    macs = next(row for row in rows if row[0] == "| MACs")
    assert [int(n.strip(" |").replace(",", "")) for n in macs[1:]] == [763_520, int(result["student"]["macs"]), 381_760]
    assert f"{result['student']['metric_test']:.2%}" in rows[2][2].replace("\u00a0%", "%")
    assert "compress-env search --agent random --evaluations 4 --finetune-epochs 2 --quiet --json --out a\n" in card.text
    assert f"| Latency, ms | {result['teacher']['latency']:.3f} | {result['student']['latency']:.3f} | \u2013 |" in card.text
    assert "None is stated" not in card.text


def test_a_measured_latency_stands_with_where_it_was_measured(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    assert result["device"].endswith(f", {os.cpu_count()} cores")
    result["device"] = "A processor|, 8 cores"
    (run / "result.json").write_text(json.dumps(result))
    text = (prepared(run, "me/net", tmp_path / "a") / "README.md").read_text()
    assert "\nNone is stated.\n" in text
    assert f"Measured with batch 1, PyTorch eager, 1 thread, torch {result['versions']['torch']} on A processor\\|, 8 cores." in text


def test_a_policy_travels_with_a_run_and_alone(hub, finished, tmp_path):
    file = saved(model(), tmp_path / "mine.onnx")
    compress_env.push_to_hub(file, "me/policy", progress=False)
    assert hub.repositories["me/policy"].keys() == {"README.md", "policy.onnx"}
    assert "It observes 3 entries of a step, and its actions are relative." in hub.repositories["me/policy"]["README.md"].decode()
    run = shutil.copytree(finished[0], tmp_path / "run")
    shutil.copy(file, run / "policy.onnx")
    compress_env.push_to_hub(run, "me/both", progress=False)
    assert hub.repositories["me/both"].keys() == FILES | {"policy.onnx"}
    (run / "student.safetensors").unlink()  # not distilled yet
    compress_env.push_to_hub(run, "me/both", progress=False)
    assert hub.repositories["me/both"].keys() == {"README.md", "run.json", "search.json", "policy.onnx"}
    assert "teacher `resnet8-digits`, budget macs 0.5, seed 0" in hub.repositories["me/both"]["README.md"].decode()
    printed = works("pull", "me/both", "--out", tmp_path / "a", "--quiet")
    assert f"policy: compress-env policy apply {tmp_path / 'a' / 'policy.onnx'} --budget" in printed and "student:" not in printed
    assert load_policy(tmp_path / "a" / "policy.onnx")([1, 0, 2]).tolist() == [8, 11]


def test_of_paths_the_last_part_travels(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    recorded = json.loads((run / "run.json").read_text())
    recorded["environment"]["problem"] |= {"data": "imagefolder:/srv/me/photos", "weights": "~/nets/net.pt"}
    recorded["command"] = "compress-env search --teacher '/srv/me/my nets/net.py:make' --data=imagefolder:/srv/me/photos --out /x/y"
    (run / "run.json").write_text(json.dumps(recorded))
    folder = prepared(run, "me/net", tmp_path / "a")
    pushed = json.loads((folder / "run.json").read_text())
    assert pushed["command"] == "compress-env search --teacher net.py:make --data=imagefolder:photos --out y"
    assert (pushed["environment"]["problem"]["data"], pushed["environment"]["problem"]["weights"]) == ("imagefolder:photos", "net.pt")
    assert not [f.name for f in folder.iterdir() if b"home/me" in f.read_bytes() or str(tmp_path).encode() in f.read_bytes()]
    kept = {"a": "hf:user/set", "b": "runs/a", "class_names": ["/m/01"], "c": "https://x.org/y", "d": "stages.*"}
    assert without_folders(kept) == kept


# What a repository of a stranger may hold


def test_other_files_stay_where_they_are(hub, net, tmp_path):
    net |= {"net.py": b"raise SystemExit", "pytorch_model.bin": b"cos\nsystem", "sub/plan.json": b"{", "student.pt2": b"x"}
    with pytest.warns(LeftOut, match="4 other files of me/net are left where they are: net.py, pytorch_model.bin, student.pt2, ..."):
        compress_env.pull_from_hub("me/net", tmp_path / "a", progress=False)
    assert names(tmp_path / "a") == FILES
    assert not [asked for asked in hub.asked if asked.endswith(("net.py", ".bin", ".pt2", "sub/plan.json"))]


def graph(*nodes, opsets=(("", 20),)):
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        list(nodes), "g", [value("input", TensorProto.FLOAT, [1, 2])], [value("logits", TensorProto.FLOAT, [1, 2])]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10).SerializeToString()


def outside():
    """A graph with weights in a file of the machine, within a node."""
    weights = numpy_helper.from_array(torch.zeros(2).numpy(), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="student.safetensors")
    return graph(helper.make_node("Constant", [], ["w"], value=weights), helper.make_node("Add", ["input", "w"], ["logits"]))


@pytest.mark.parametrize("name, content, told", [
    ("run.json", b"{", "cannot read run.json of me/net: it is damaged"),
    ("plan.json", b"[" * 100_000, "cannot read plan.json of me/net: it is damaged"),
    ("result.json", b"[]", "result.json of me/net holds no JSON object"),
    ("student.safetensors", b"cos\nsystem\n(S'id'\ntR.", "student.safetensors of me/net is no whole safetensors file"),
    ("student.safetensors", None, "student.safetensors of me/net is no whole safetensors file"),
    ("student.onnx", b"something", "student.onnx of me/net is no ONNX file"),
    ("student.onnx", outside(), "student.onnx of me/net has weights in another file"),
    ("student.onnx", graph(helper.make_node("None", ["input"], ["logits"])), "student.onnx of me/net is no valid ONNX file"),
    ("student.onnx", graph(helper.make_node("Own", ["input"], ["logits"], domain="own"), opsets=(("", 20), ("own", 1))), "'own'"),
    ("policy.onnx", external().SerializeToString(), "policy.onnx of me/net is no policy of this package"),
], ids=lambda value: "" if isinstance(value, bytes) else None)  # fmt: skip
def test_a_file_that_is_not_what_its_name_says_is_refused_before_anything_is_there(net, tmp_path, name, content, told):
    net[name] = net[name][:-100] if content is None else content
    line = refused("pull", "me/net", "--out", tmp_path / "a", "--quiet")
    assert told in line and names(tmp_path / "a") == set()


@pytest.mark.parametrize("size, told", [(LARGEST["plan.json"] + 1, "plan.json of me/net has 67108865 bytes"), (None, "unknown bytes")])
def test_a_file_that_is_too_large_is_not_asked_for(hub, net, tmp_path, size, told):
    hub.sizes["plan.json"] = size
    assert told in refused("pull", "me/net", "--out", tmp_path / "a", "--quiet")
    assert not [asked for asked in hub.asked if "resolve" in asked]


def test_a_repository_of_something_else_is_refused(hub, tmp_path):
    hub.repositories["me/other"] = {"README.md": b"", "model.safetensors": b"", "config.json": b"{}"}
    with pytest.warns(LeftOut):
        with pytest.raises(UserError, match="me/other has none of student.safetensors, student.onnx, policy.onnx to take"):
            compress_env.pull_from_hub("me/other", tmp_path / "a")


def test_code_that_a_pulled_run_names_is_not_run(net, tmp_path):
    recorded = json.loads(net["run.json"])
    recorded["environment"]["reward"] = f"{tmp_path}/evil.py:reward"  # which a student does not need, nor data
    recorded["environment"]["problem"] |= dict.fromkeys(("data", "validation", "augmentation"), f"{tmp_path}/evil.py:data")
    net["run.json"] = json.dumps(recorded).encode()
    compress_env.load_student(compress_env.pull_from_hub("me/net", tmp_path / "a", progress=False))
    recorded["environment"]["problem"]["teacher"] = f"{tmp_path}/evil.py:make"
    net["run.json"] = json.dumps(recorded).encode()
    pulled = compress_env.pull_from_hub("me/net", tmp_path / "b", progress=False)
    with pytest.raises(UserError, match="names code to be run .*evil.py:make.*can be given itself, too, as network="):
        compress_env.load_student(pulled)
    expected = compress_env.load_student(tmp_path / "a")(INPUTS)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        untrained = resnet8_digits().eval()
    assert torch.equal(compress_env.load_student(pulled, network=untrained)(INPUTS), expected)
    assert torch.equal(compress_env.load_student(pulled, network="compress_env.teachers.resnet:resnet8_digits")(INPUTS), expected)
    recorded["environment"]["problem"]["teacher"] = {"python object": "Net"}
    (pulled / "run.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=r"was a Python object \(Net\); give it as network="):
        compress_env.load_student(pulled)
    assert torch.equal(compress_env.load_student(pulled, network=untrained)(INPUTS), expected)


def test_a_distillation_without_a_search_travels(hub, finished, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    compress_env.export.save_weights(network, made)
    numbers = {"metric_validation": 0.9, "metric_test": 0.875, "params": 650.0, "macs": 640.0, "file_bytes": 2760}
    result = json.loads((finished[0] / "result.json").read_text())
    shared = {name: result[name] for name in ("metric", "finetune", "recipe", "metadata", "exports")}
    (made / "result.json").write_text(json.dumps(shared | {"teacher": numbers, "student": numbers}))
    (made / "distillation.json").write_text(json.dumps({"student": "/srv/me/net.py:make", "task": "classification", "command": None}))
    compress_env.push_to_hub(made, "me/linear", progress=False)
    card = hub.repositories["me/linear"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.875
    assert 'load_student("linear", network="net.py:make")' in card and "| parameters | 650 | 650 |" in card
    pulled = compress_env.pull_from_hub("me/linear", tmp_path / "a", progress=False)
    with pytest.raises(UserError, match="names code to be run"):
        compress_env.load_student(pulled)
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert torch.equal(compress_env.load_student(pulled, network=fresh)(INPUTS), network(INPUTS))
    assert not torch.equal(fresh(INPUTS), network(INPUTS))


# What goes wrong


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(hub, finished, tmp_path, monkeypatch):
    assert "there is no" in refused("push", tmp_path / "none", "--to", "me/net")
    assert "has no run.json" in refused("push", tmp_path, "--to", "me/net")
    assert "has no user or organisation" in refused("push", finished[0], "--to", "net")
    (tmp_path / "p.onnx").write_bytes(b"something")
    assert f"{tmp_path}/p.onnx is no policy of this package" in refused("push", tmp_path / "p.onnx", "--to", "me/net")
    run = shutil.copytree(finished[0], tmp_path / "run")
    (run / "student.safetensors").unlink()
    assert "has neither a distilled student nor a policy; compress-env finetune" in refused("push", run, "--to", "me/net")
    os.symlink("/etc/passwd", run / "student.safetensors")
    assert "student.safetensors is a link" in refused("push", run, "--to", "me/net")
    hub.repositories["me/open"] = {}
    assert "is there and open to all" in refused("push", finished[0], "--to", "me/open", "--private", "--quiet")
    monkeypatch.delenv("HF_TOKEN")
    line = refused("push", finished[0], "--to", "me/net")
    assert line.endswith("there is no token for the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN")
    assert not [asked for asked in hub.asked if asked.startswith("POST")]


def test_a_repository_that_is_pushed_to_again_loses_what_is_not_there_any_more_and_keeps_other_files(net, finished, tmp_path):
    net["notes.txt"] = b"mine"
    run = shutil.copytree(finished[0], tmp_path / "run")
    (run / "student.onnx").unlink()
    compress_env.push_to_hub(run, "me/net", progress=False)
    assert net.keys() == FILES - {"student.onnx"} | {"notes.txt"}


def test_what_the_hub_refuses_is_a_line(hub, net, finished, tmp_path, monkeypatch):
    assert "there is no repository me/none that you may see" in refused("pull", "me/none", "--out", tmp_path / "a")
    assert "has no such branch, tag or commit" in refused("pull", "me/net", "--revision", "v9", "--out", tmp_path / "a")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "one that may write there: log in with" in refused("push", finished[0], "--to", "me/net", "--quiet")
    monkeypatch.setattr(hubs.Hub, "__call__", lambda self, request: (_ for _ in ()).throw(hubs.http.ConnectError("refused")))
    assert "the Hub cannot be reached (refused)" in refused("pull", "me/net", "--out", tmp_path / "a")


def test_without_onnx_graphs_are_left_out(net, tmp_path, monkeypatch):
    monkeypatch.setattr("compress_env.extras.find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.warns(LeftOut, match=r'student.onnx of me/net cannot be checked .* pip install "compress-env\[export\]"'):
        compress_env.pull_from_hub("me/net", tmp_path / "a", progress=False)
    assert names(tmp_path / "a") == FILES - {"student.onnx"}


def test_names_of_files_are_few_and_none_can_run_code():
    assert {Path(name).suffix for name in LARGEST} == {".json", ".safetensors", ".onnx", ".md"}

