"""Teachers: shipped networks against published numbers, the user's own in every form, and weights that do not fit."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from networks import vgg
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_teacher import main as train
from compress_env.data import load_data
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import predict
from compress_env.errors import UnknownName, UserError
from compress_env.tasks.classification import accuracy
from compress_env.teachers import TEACHERS, load_teacher, load_weights

COUNTS = {
    "resnet20-cifar10": ((3, 32, 32), 272_474, 40_813_184),
    "resnet56-cifar10": ((3, 32, 32), 855_770, 125_747_840),
    "resnet8-digits": ((1, 8, 8), 77_754, 763_520),
    "vgg7-digits": ((1, 8, 8), 72_666, 599_680),
    "mobilenetv2-digits": ((1, 8, 8), 75_818, 868_736),
    "vgg16-cifar10": ((3, 32, 32), 923_130, 19_907_840),
    "mobilenetv2-cifar10": ((3, 32, 32), 590_410, 26_324_224),
}


@pytest.mark.parametrize("name", TEACHERS.names())
def test_the_shipped_networks_have_the_published_size(name):
    shape, parameters, macs = COUNTS[name]
    model = TEACHERS.get(name).factory().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(torch.zeros(1, *shape))
    assert counter.get_total_flops() / 2 == macs
    assert logits.shape == (1, 10)


def test_resnet20_has_twenty_layers_with_weights_beside_its_two_projections():
    modules = dict(TEACHERS.get("resnet20-cifar10").factory().named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len([name for name in layers if "shortcut" not in name]) == 20 and len(layers) == 22


@pytest.mark.parametrize("name", [name for name in TEACHERS.names() if TEACHERS.get(name).data == "digits"])
def test_the_shipped_weights_know_the_digits(name):
    teacher = load_teacher(name)
    assert not teacher.module.training and teacher.data == "digits"
    data = load_data("digits")
    assert accuracy(predict(teacher.module, data, data.test), data.test.labels) >= 0.98
    assert 0.97 <= accuracy(predict(teacher.module, data, data.validation), data.validation.labels)


def test_a_module_is_used_as_it_is():
    model = vgg()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    teacher = load_teacher(model)
    assert teacher.module is model and teacher.name == "Sequential"
    assert teacher.data is None and teacher.normalization is None
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert load_teacher(teacher) is teacher


def test_weights_beside_a_module_are_refused(tmp_path):
    with pytest.raises(UserError, match="load them into your module yourself"):
        load_teacher(vgg(), tmp_path / "w.pt")


# The user's own, by name


@pytest.fixture
def own(tmp_path):
    """The path of a file with several attributes, and of weights for its network."""
    file, weights = tmp_path / "own.py", tmp_path / "w.pt"
    file.write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
        "def make_net(): return Net()\n"
        "def make_text(): return 'net'\n"
        "net, number = Net().eval(), 3\n"
    )
    torch.save({"1.weight": torch.full((10, 64), 2.0), "1.bias": torch.arange(10.0)}, weights)
    return file, weights


@pytest.mark.parametrize("attribute", ["make_net", "Net"])
def test_a_factory_or_a_class_in_a_file_gives_a_teacher_in_evaluation_mode_with_the_weights(own, attribute):
    file, weights = own
    teacher = load_teacher(f"{file}:{attribute}", weights)
    assert not teacher.module.training and teacher.name == f"{file}:{attribute}"
    assert teacher.module(torch.zeros(2, 1, 8, 8)).tolist() == [list(range(10))] * 2


def test_a_module_in_a_file_is_taken_as_it_is_and_without_weights(own):
    file, weights = own
    assert load_teacher(f"{file}:net").name == f"{file}:net"
    with pytest.raises(UserError, match="load them into your module yourself"):
        load_teacher(f"{file}:net", weights)


@pytest.mark.parametrize("attribute, message", [
    ("make_text", r"returned str; it has to return a torch\.nn\.Module"),
    ("number", "int; it has to be a factory"),
    ("make_nett", "did you mean 'make_net'"),
])  # fmt: skip
def test_what_gives_no_module_is_refused(own, attribute, message):
    with pytest.raises(UserError, match=message):
        load_teacher(f"{own[0]}:{attribute}")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="no teacher 'resnet8-digit'; did you mean 'resnet8-digits'"):
        load_teacher("resnet8-digit")
    with pytest.raises(UnknownName, match="known: mobilenetv2-cifar10, mobilenetv2-digits, resnet20-cifar10, resnet56-"):
        load_teacher("transformer")


def test_what_is_neither_module_nor_name_is_refused():
    with pytest.raises(UserError, match="got int"):
        load_teacher(8)


# Weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_back_as_they_were_saved(tmp_path, suffix):
    source, target = vgg(), vgg()
    path = tmp_path / f"w{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    load_weights(target, path)
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def linear_weights(**changes) -> dict[str, torch.Tensor]:
    state = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)} | changes
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize("state, problems", [
    (linear_weights(bias=None), "Linear's: missing bias"),
    (linear_weights(scale=torch.zeros(1)), "Linear's: unexpected scale"),
    (linear_weights(weight=torch.zeros(2, 4)), r"Linear's: weight is \(2, 4\) instead of \(2, 3\)"),
    ({"w": torch.ones(2, 3), "b": torch.ones(2)}, "Linear's: missing weight; missing bias; unexpected [bw] and 1 more"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_wrong_weights_name_the_first_keys_and_change_nothing(tmp_path, state, problems, suffix):
    path, model = tmp_path / f"w{suffix}", nn.Linear(3, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(UserError, match=f"{problems}$"):
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no weights file .*gone\.pt"):
        load_teacher("resnet8-digits", tmp_path / "gone.pt")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def plainly(state, path: Path) -> None:
    path.write_bytes(pickle.dumps(state, protocol=2))


@pytest.mark.parametrize("save", [torch.save, plainly])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, save):
    trap, path = tmp_path / "sprung", tmp_path / "w.pt"
    save({"weight": torch.zeros(2, 3), "bias": Trap(trap)}, path)
    with pytest.raises(UserError, match="cannot read weights .* a state dict of tensors saved by torch.save"):
        load_weights(nn.Linear(3, 2), path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))  # the trap works
    assert trap.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "w.pt")
    with pytest.raises(UserError, match="cannot read weights"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"some text", b"0", b"\x94" * 20, b"(lp0\n."], ids=range(5))
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_that_holds_something_else_is_refused_in_one_line(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_weights(nn.Linear(3, 2), path)
    assert path.name in str(raised.value) and "\n" not in str(raised.value)


# Training


@pytest.fixture
def quick(monkeypatch):
    """The digits' teacher with a recipe of seconds."""
    shipped = TEACHERS.get("resnet8-digits")
    monkeypatch.setitem(
        TEACHERS._entries, shipped.name, replace(shipped, recipe=Recipe(epochs=12, batch_size=64, lr=0.1))
    )
    return shipped


def test_a_shipped_teacher_can_be_trained_again(quick, tmp_path):
    out = tmp_path / "w.safetensors"
    done = CliRunner().invoke(train, [quick.name, "--out", str(out)])
    assert done.exit_code == 0, done.output
    data = load_data("digits")
    assert accuracy(predict(load_teacher(quick.name, out).module, data, data.test), data.test.labels) > 0.9
    assert list(tmp_path.iterdir()) == [out]  # the checkpoint is gone


def test_data_that_is_not_there_is_said_in_one_line(quick, tmp_path):
    done = CliRunner().invoke(
        train, [quick.name, "--out", str(tmp_path / "w"), "--data", f"imagefolder:{tmp_path / 'no'}"]
    )
    assert done.exit_code == 2 and "no" in done.output and "Traceback" not in done.output
