"""Teachers: shipped ones by name, the user's own as a module, a factory and a weights file: `load_teacher`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from compress_env.data.dataset import Normalization
from compress_env.distill.recipes import Recipe
from compress_env.errors import UserError
from compress_env.registry import Registry
from compress_env.teachers.mobilenet import mobilenetv2_cifar10, mobilenetv2_digits
from compress_env.teachers.resnet import resnet8_digits, resnet20_cifar10
from compress_env.teachers.vgg import vgg7_digits, vgg16_cifar10

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ShippedTeacher:
    """A network with weights in this package.

    Attributes:
        name: Its name, also that of its weights file.
        factory: Makes it, with random weights.
        data: Name of the data set that it was trained on.
        input_shape: Of one input, without the batch dimension.
        recipe: How it was trained.
        normalization: Of its inputs; the data set's own if None.
        task: Name of the task that it was trained for.
    """

    name: str
    factory: Callable[[], nn.Module]
    data: str
    input_shape: tuple[int, ...]
    recipe: Recipe
    normalization: Normalization | None = None
    task: str = "classification"

    @property
    def weights(self) -> Path:
        """Its weights file."""
        return WEIGHTS / f"{self.name}.safetensors"


CIFAR10: Normalization = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def _digits(name: str, factory: Callable[[], nn.Module]) -> ShippedTeacher:
    return ShippedTeacher(name, factory, "digits", (1, 8, 8), Recipe(epochs=60, batch_size=64, lr=0.1))


def _cifar10(name: str, factory: Callable[[], nn.Module], epochs: int, lr: float) -> ShippedTeacher:
    recipe = Recipe(epochs=epochs, batch_size=128, lr=lr, precision="bfloat16")
    return ShippedTeacher(name, factory, "cifar10", (3, 32, 32), recipe, CIFAR10)


TEACHERS = Registry("teacher")
for _teacher in (
    _digits("resnet8-digits", resnet8_digits),
    _digits("vgg7-digits", vgg7_digits),
    _digits("mobilenetv2-digits", mobilenetv2_digits),
    _cifar10("resnet20-cifar10", resnet20_cifar10, epochs=64, lr=0.2),
    _cifar10("vgg16-cifar10", vgg16_cifar10, epochs=100, lr=0.1),
    _cifar10("mobilenetv2-cifar10", mobilenetv2_cifar10, epochs=100, lr=0.1),
):
    TEACHERS.register(_teacher.name)(_teacher)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A loaded network.

    Attributes:
        name: Its name, or the name of its class.
        module: The network, in evaluation mode if it was loaded here.
        data: Name of the data set that it was trained on, if it is a shipped one; so are the following.
        normalization: Of its inputs.
        input_shape: Of one input.
    """

    name: str
    module: nn.Module
    data: str | None = None
    normalization: Normalization | None = None
    input_shape: tuple[int, ...] | None = None


def load_teacher(spec: Any, weights: str | Path | None = None) -> Teacher:
    """A teacher from an `nn.Module`, a registered name, `module:factory` or `path/to/file.py:factory`, and a weights file.

    A given module is used as it is and never changed, unless weights are to be loaded into it, which is refused.

    Args:
        spec: The module, name or place.
        weights: For a teacher by name or factory: a safetensors file, or a state dict saved by torch.

    Raises:
        UserError: Naming what cannot be used, for wrong weights the first keys that differ.
    """
    if isinstance(spec, Teacher):
        return spec
    if isinstance(spec, nn.Module):
        if weights is not None:
            raise UserError("weights are for a teacher given by name or factory; load them into your module yourself")
        return Teacher(type(spec).__name__, spec)
    if not isinstance(spec, str):
        raise UserError(f"a teacher has to be a module, a name or module:factory, got {type(spec).__name__}")
    entry = TEACHERS.get(spec)
    shipped = entry if isinstance(entry, ShippedTeacher) else None
    if shipped is None and isinstance(entry, nn.Module):
        return replace(load_teacher(entry, weights), name=spec)
    factory = shipped.factory if shipped else entry
    if not callable(factory):
        raise UserError(f"teacher {spec!r} is a {type(factory).__name__}; it has to be a factory that returns a module")
    with torch.random.fork_rng():  # what initialises the weights is no business of the caller's random state
        module = factory()
    if not isinstance(module, nn.Module):
        raise UserError(f"teacher {spec!r} returned {type(module).__name__}; it has to return a torch.nn.Module")
    path = Path(weights) if weights is not None else shipped.weights if shipped else None
    if path is not None:
        load_weights(module, path)
    module.eval()
    if shipped is None:
        return Teacher(spec, module)
    return Teacher(spec, module, shipped.data, shipped.normalization, shipped.input_shape)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file, or a state dict saved by torch, into `module`. No pickled code is run.

    Raises:
        UserError: If the file cannot be read, or its keys or shapes are not the module's.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load raises almost anything for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot read weights from {path}: {reason}; it has to be a safetensors file or a "
            "state dict of tensors saved by torch.save"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict; save it with torch.save(model.state_dict(), path)")
    own = module.state_dict()
    problems = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"weights in {path} are not {type(module).__name__}'s: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(state)
