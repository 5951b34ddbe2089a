"""Teachers: shipped ones by name, the user's own as a module, a factory and a weights file: `load_teacher`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compress_env.data.dataset import Normalization
from compress_env.distill.recipes import Recipe
from compress_env.errors import UserError
from compress_env.registry import Registry
from compress_env.teachers.admission import admitted, made
from compress_env.teachers.checkpoints import load_weights
from compress_env.teachers.mobilenet import mobilenetv2_cifar10, mobilenetv2_digits
from compress_env.teachers.resnet import resnet8_digits, resnet20_cifar10, resnet56_cifar10
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
    _cifar10("resnet56-cifar10", resnet56_cifar10, epochs=100, lr=0.1),
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


def load_teacher(spec: Any, weights: str | Path | None = None, progress: bool = False, role: str = "teacher") -> Teacher:
    """A teacher from an `nn.Module`, a registered name, `module:factory` or `path/to/file.py:factory`, and a weights file.

    A given module is used as it is and never changed, unless weights are to be loaded into it, which is refused. One with
    computed weights, or in other floats than float32, is copied.

    Args:
        spec: The module, name or place.
        weights: For a teacher by name or factory: a safetensors file, a state dict or a checkpoint saved by torch.
        progress: Whether to say on standard error what was chosen of a checkpoint.
        role: What it is to be, for messages: a teacher, or a student that is trained on its own.

    Raises:
        UserError: Naming what cannot be used, for wrong weights the first keys that differ.
    """
    if isinstance(spec, Teacher):
        return spec
    if isinstance(spec, nn.Module):
        if weights is not None:
            raise UserError(f"weights are for a {role} given by name or factory; load them into your module yourself")
        name = type(spec).__name__
        return Teacher(name, admitted(spec, name, progress, role))
    if not isinstance(spec, str):
        raise UserError(f"a {role} has to be a module, a name or module:factory, got {type(spec).__name__}")
    entry = TEACHERS.get(spec)
    shipped = entry if isinstance(entry, ShippedTeacher) else None
    if shipped is None and isinstance(entry, nn.Module):
        return replace(load_teacher(entry, weights, progress, role), name=spec)
    factory = shipped.factory if shipped else entry
    if not callable(factory):
        raise UserError(f"{role} {spec!r} is a {type(factory).__name__}; it has to be a factory that returns a module")
    module = made(factory, spec, role)
    path = Path(weights).expanduser() if weights is not None else shipped.weights if shipped else None
    if path is not None:
        load_weights(module, path, progress)
    module = admitted(module.eval(), spec, progress, role)
    if shipped is None:
        return Teacher(spec, module)
    return Teacher(spec, module, shipped.data, shipped.normalization, shipped.input_shape)


__all__ = ["TEACHERS", "WEIGHTS", "ShippedTeacher", "Teacher", "load_teacher", "load_weights"]
