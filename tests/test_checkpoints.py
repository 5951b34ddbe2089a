"""Checkpoints as trainers write them, and modules as people bring them: each gives the right weights, or is refused with the cure."""

from __future__ import annotations

import argparse
import collections
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from compress_env.errors import UserError
from compress_env.teachers import load_teacher, load_weights


def net(classes: int = 3) -> nn.Sequential:
    parts = {"conv": nn.Conv2d(1, 4, 3), "bn": nn.BatchNorm2d(4), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(collections.OrderedDict(parts, head=nn.Linear(4, classes)))


with torch.random.fork_rng():
    torch.manual_seed(0)
    SOURCE, OTHER = net(), net()
GOOD, OLD = SOURCE.state_dict(), OTHER.state_dict()


def named(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


CHECKPOINTS = {
    "plain": (GOOD, ""),
    "state_dict": ({"state_dict": GOOD, "epoch": 3}, "state_dict, of epoch 3"),
    "model and optimizer": ({"model": GOOD, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "model"),
    "averaged, as timm has it": ({"state_dict": OLD, "state_dict_ema": GOOD}, "state_dict_ema"),
    "averaged, wrapped": ({"model": OLD, "model_ema": named("module.", GOOD)}, "model_ema, without the prefix 'module.'"),
    "averaged, deep": ({"model": OLD, "ema": {"decay": 0.9, "shadow": GOOD}}, "ema.shadow"),
    "averaged by torch": (torch.optim.swa_utils.AveragedModel(SOURCE).state_dict(), "all tensors, without the prefix 'module.'"),
    "parallel": (named("module.", GOOD), "all tensors, without the prefix 'module.'"),
    "compiled, then parallel": (named("module._orig_mod.", GOOD), "all tensors, without the prefix 'module._orig_mod.'"),
    "parallel, then compiled": (named("_orig_mod.module.", GOOD), "all tensors, without the prefix '_orig_mod.module.'"),
    "a compiled part": ({n.replace("conv.", "conv._orig_mod."): v for n, v in GOOD.items()}, "all tensors, without the prefix"),
    "Lightning": (
        {"state_dict": {**named("model.", GOOD), "criterion.weight": torch.ones(3)}, "pytorch-lightning_version": "2.4"},
        "state_dict, without the prefix 'model.', without criterion.weight, which is not the network's",
    ),
    "Lightning with averages": (
        {"state_dict": {**named("net.", OLD), **named("ema_model.", GOOD)}}, "state_dict, without the prefix 'ema_model.'"),
    "nested": ({"a": {"b": {"state_dict": named("module.model.", GOOD)}}}, "a.b.state_dict, without the prefix 'module.model.'"),
    "half": ({"model": {n: v.half() if v.is_floating_point() else v for n, v in GOOD.items()}}, "model"),
    "arguments and scores": (
        {"model": GOOD, "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")), "best": np.float64(0.3), "curve": np.arange(3.0)},
        "model",
    ),
    "counted by thop": ({**GOOD, "total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}, ""),
    "an old torch's": ({n: v for n, v in GOOD.items() if "num_batches" not in n}, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_trainers_checkpoint_gives_its_weights_and_the_choice_is_said(tmp_path, case, capsys):
    content, said = CHECKPOINTS[case]
    torch.save(content, tmp_path / "w.pt")
    model = net()
    load_weights(model, tmp_path / "w.pt", progress=True)
    for name, value in model.state_dict().items():
        assert value.dtype == GOOD[name].dtype and torch.allclose(value, GOOD[name], atol=1e-3), name
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"weights of w.pt: {said}") for line in lines] == [True] * bool(said), lines


def test_safetensors_with_a_prefix_and_tied_weights_are_found(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

    source, target = Tied(), Tied()
    save_file(named("module.", GOOD), tmp_path / "a.safetensors")
    load_weights(model := net(), tmp_path / "a.safetensors")
    assert torch.equal(model.conv.weight, SOURCE.conv.weight)
    save_model(source, str(tmp_path / "b.safetensors"))  # keeps one name of a tied tensor
    load_weights(target, tmp_path / "b.safetensors")
    assert torch.equal(target.embed.weight, source.embed.weight) and target.out.weight is target.embed.weight


REFUSED = {
    "another number of classes": (
        {"state_dict": named("module.", net(7).state_dict())}, r"at state_dict are not Sequential's: head\.weight is \(7, 4\)"),
    "NaN": ({"model": {**GOOD, "head.weight": GOOD["head.weight"] * torch.nan}}, "weights head.weight in .* 12 of 12 values"),
    "infinite": ({**GOOD, "conv.bias": torch.tensor([0, 1, torch.inf, 2])}, "weights conv.bias in .* have 1 of 4 values"),
    "whole numbers": ({**GOOD, "head.weight": GOOD["head.weight"].to(torch.int8)}, "head.weight is int8 instead of float32"),
    "a module": (SOURCE, "pickled torch.nn.modules.container.Sequential, which would run code.*save the weights alone"),
    "a module in a dict": ({"model": SOURCE, "epoch": 1}, "pickled torch.nn.modules.container.Sequential"),
    "an optimizer alone": ({"optimizer": {"state": {}}, "epoch": 1}, r"holds no state dict \(its keys: optimizer, epoch\)"),
    "nothing": ({}, r"holds no state dict \(it is an empty dict\)"),
    "two networks": ({**named("generator.", GOOD), **named("critic.", OLD)}, "several networks that fit .*'critic.'.*'generator.'"),
    "part of a larger network": ({**named("fc.", GOOD), **{f"{i}.w": torch.ones(1) for i in range(50)}}, "missing|unexpected"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_weights_of_the_network_is_refused_with_the_cure_and_changes_nothing(tmp_path, case):
    content, message = REFUSED[case]
    torch.save(content, tmp_path / "w.pt")
    model = net()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def scripted() -> torch.jit.ScriptModule:
    return torch.jit.trace(SOURCE, torch.zeros(1, 1, 8, 8), check_trace=False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_files_of_other_kinds_are_named(tmp_path):
    torch.jit.save(scripted(), tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), tmp_path / "exported.pt2")
    torch.save(GOOD, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-500])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\nxxxx")
    for name, message in {
        "script.pt": "it is TorchScript", "exported.pt2": "it is an exported program of torch.export", "empty.pt": "it is empty",
        "cut.pt": "it is damaged", "keras.h5": "an HDF5 file", "": "are a folder; give the file itself, for example .*cut.pt",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_weights(net(), tmp_path / name)


# Modules


class Needs(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_modules_that_cannot_be_compressed_are_refused_with_the_cure():
    diverged = net()
    diverged.bn.running_var[1] = torch.nan
    for module, message in [
        (scripted(), "is TorchScript, .* give the Python module"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "has no parameters"),
        (nn.Sequential(nn.LazyLinear(3)), r"lazy layer without weights \(0\.weight\); run it once"),
        (nn.Linear(3, 2, device="meta"), "weights without values"),
        (diverged, r"weights bn\.running_var of the teacher 'Sequential' have 1 of 4 values that are NaN"),
    ]:
        with pytest.raises(UserError, match=message):
            load_teacher(module.eval())


def test_a_mask_of_infinities_is_no_diverged_weight():
    module = nn.Linear(3, 2)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    assert load_teacher(module).module is module


def test_wrappers_of_torch_are_taken_off():
    assert load_teacher(nn.DataParallel(SOURCE)).module is SOURCE
    assert load_teacher(torch.compile(nn.DataParallel(SOURCE))).module is SOURCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_teacher_in_other_floats_is_copied_to_float32_and_that_is_said(dtype, capsys):
    given = net().to(dtype).eval()
    found = load_teacher(given, progress=True).module
    assert {v.dtype for v in found.parameters()} == {torch.float32} and {v.dtype for v in given.parameters()} == {dtype}
    assert torch.equal(found.conv.weight, given.conv.weight.float())
    assert f"is in {str(dtype)[6:]}; a copy in float32 is compressed" in capsys.readouterr().err


def test_a_factory_that_needs_arguments_or_raises_is_named_with_the_cure(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "def make(classes): return nn.Linear(3, classes)\n"
        "def broken(): return nn.Linear(3, {}['classes'])\n"
    )
    with pytest.raises(UserError, match=r"needs some \(missing a required argument: 'classes'\); write one that needs none, such as"):
        load_teacher(f"{file}:make")
    with pytest.raises(UserError, match=r"the factory raised KeyError: 'classes' \(own\.py:3\)"):
        load_teacher(f"{file}:broken")
