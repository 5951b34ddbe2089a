"""Does this teacher run here? The one place that says so, for everything that needs a teacher: `run_teacher`, `answers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from compress_env import devices
from compress_env.contexts import seeded
from compress_env.data import Data, augmentation, load_data
from compress_env.data.channels import with_channels
from compress_env.errors import UserError
from compress_env.progress import announced, say
from compress_env.resources import RESOURCES
from compress_env.spec import ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.net2net import growing
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.tasks import Task
from compress_env.teachers import Teacher
from compress_env.teachers.admission import raised

EXAMPLES = 3
"""Inputs that a teacher is tried on."""
CURE = "give other data, or another image size or input shape"
CALIBRATION = 256
"""Inputs on which normalisations that may be inserted take their statistics."""
COUNTS = (2, EXAMPLES)
"""Examples at once that are tried: a network that takes only one number of them can be neither judged nor exported."""


@dataclass(frozen=True, eq=False)
class Running:
    """A teacher that was seen to run here.

    Attributes:
        module: The network that students are made of: the teacher, or where it may grow, one that holds all that may be inserted.
        graph: What was found in it.
        whole: The student of the empty plan, on the device of evaluations.
        example: Inputs `(n, ...)` on the CPU that it ran on.
    """

    module: nn.Module
    graph: LayerGraph
    whole: fx.GraphModule
    example: Tensor


def run_teacher(spec: ProblemSpec, teacher: Teacher, task: Task | None, data: Data | None, example: Tensor, progress: bool) -> Running:
    """Run and trace a teacher as a search does: on its own device, then as a student on that of evaluations.

    Args:
        spec: The scope, and the device.
        teacher: The network.
        task: Checks whether outputs suit the data; None for nothing to check.
        data: The data, if it is loaded.
        example: Inputs on the CPU: the data's, or zeros.
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: If the teacher does not take the inputs, or its outputs do not suit the data.
    """
    module, name = teacher.module, teacher.name
    device = devices.usable("cpu" if spec.device == "auto" else spec.device)
    known = data is not None
    try:
        outputs = answers(module, name, example, finite=known)
        if data is not None and task is not None:
            task.check(outputs, data, name)
    except UserError:
        if known or not _runs(module, example.long()):
            raise
        example = example.long()  # it takes the numbers of words
    multiple = spec.channel_multiple or max([RESOURCES.get(name).channel_multiple for name in spec.resources], default=1)
    def traced(network: nn.Module) -> LayerGraph:
        return trace(network, example[:2], **spec.scope, channel_multiple=multiple)

    with announced(f"tracing {name}", progress):
        graph = traced(module)
        if spec.changes != "compress":
            inputs = data.calibration(CALIBRATION) if data is not None else example
            module, graph = growing(module, graph, traced, spec.growth, spec.changes == "transform", inputs)
    if spec.device == "auto":
        device = devices.fastest_for(float(graph.view(frozenset()).macs(graph.full)))
    whole = build_student(module, graph, Plan()).to(device)
    answers(whole, name, example, cure="give another --device", finite=known)
    return Running(module, graph, whole, example)


def answers(module: nn.Module, name: str, inputs: Tensor, *, cure: str = CURE, finite: bool = True, role: str = "teacher") -> Tensor:
    """The outputs of a teacher, or of a student, on its device.

    Args:
        module: The network.
        name: Its name, for messages; a student of the empty plan has the teacher's.
        inputs: At least three, `(n, ...)`, as the network takes them.
        cure: What to do if it does not run.
        finite: Whether outputs have to be numbers, as for real inputs.
        role: What it is, for messages.

    Returns:
        Outputs `(n, ...)`.

    Raises:
        UserError: That names the teacher, what was tried, what went wrong and what to do: if it is in training mode, if it raises
            anything, if it gives anything but a tensor with a row an example, or if its outputs are not finite.
    """
    if (training := next((place for place, part in module.named_modules() if part.training), None)) is not None:
        where = f"its layer {training!r} is in" if training else "it is in"
        raise UserError(f"the {role} {name!r} cannot be judged: {where} training mode; call .eval() on the whole network first")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    tried = f"{str(inputs.dtype).removeprefix('torch.')} inputs of shape {tuple(inputs.shape[1:])} on {device}"
    outputs = inputs
    for count in COUNTS:
        part = inputs[:count].to(device)
        try:
            with torch.no_grad():
                found = _run(module, part)
        except Exception as error:  # noqa: BLE001 - what a network raises is up to its author
            raise UserError(f"the {role} {name!r} does not take {tried}: {raised(error)}; {cure}") from error
        if not isinstance(found, Tensor):
            raise UserError(
                f"the {role} {name!r} answers {tried} with {_kind(found)}; it has to answer with one tensor, a row an example: "
                "wrap it in a module whose forward returns that part alone"
            )
        if found.dim() == 0 or len(found) != len(part):
            raise UserError(
                f"the {role} {name!r} answers {len(part)} {tried} with a tensor of shape {tuple(found.shape)}; it has to have a row "
                "an example, for any number of them"
            )
        outputs = found
    if finite and not bool(torch.isfinite(outputs).all()):
        raise UserError(
            f"the {role} {name!r} answers {tried} with values that are NaN or infinite; look at its weights, and at how inputs are "
            "normalised"
        )
    return outputs


def _run(module: nn.Module, inputs: Tensor) -> Any:
    """What a network answers; what it writes to its buffers is lost, since a teacher stays as it came."""
    with seeded(0, inputs.device):
        return functional_call(module, {name: buffer.clone() for name, buffer in module.named_buffers()}, (inputs,))


def takes_bfloat16(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a network runs in mixed precision with bfloat16, and gives numbers; some operations have no such form."""
    return _runs(module, inputs, bfloat16=True)


def _runs(module: nn.Module, inputs: Tensor, bfloat16: bool = False) -> bool:
    device = next(p.device for p in module.parameters())
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            found = _run(module, inputs.to(device))
    except Exception:  # noqa: BLE001 - the answer is no, whatever a network raises
        return False
    return isinstance(found, Tensor) and bool(torch.isfinite(found).all())


def data_of(spec: ProblemSpec, teacher: Teacher, progress: bool) -> Data:
    """The data of a problem. Raises UserError if there is none, or it cannot be used."""
    if spec.data is None and teacher.data is None:
        raise UserError(f"the teacher {teacher.name!r} needs data: a name, imagefolder:DIR, images:DIR, a factory or (train, test)")
    if spec.augmentation not in (None, "none"):
        augmentation.function(spec.augmentation)  # refused before anything is read
    data = load_data(
        teacher.data if spec.data is None else spec.data, normalization=spec.normalization or teacher.normalization,
        image_size=spec.image_size, validation=spec.validation, progress=progress,
    )  # fmt: skip
    if data.train.inputs.dtype == torch.uint8 and (other := _other_channels(teacher.module, data.calibration(2))):
        data = with_channels(data, other)
        colours = "grey" if other == 1 else "colour"
        say(f"pictures are read in {colours}, as the teacher {teacher.name!r} takes inputs of {other} channels", progress)
    if spec.augmentation == "none":
        data = replace(data, crop_padding=0, flip=False)
    elif spec.augmentation is not None:
        data = replace(data, augmentation=augmentation.find(spec.augmentation, data.input_shape))
    if spec.classes is None:
        return data
    if spec.classes < data.outputs:
        raise UserError(f"the data set {data.name!r} has {data.outputs} classes, more than classes={spec.classes}")
    return replace(data, outputs=spec.classes, complete=True)


def _other_channels(module: nn.Module, images: Tensor) -> int | None:
    """1 or 3, if a network takes images `(n, channels, height, width)` with that number of channels and not as they are."""
    other = {1: 3, 3: 1}.get(images.shape[1]) if images.dim() == 4 else None
    if other is None or _runs(module, images) or not _runs(module, images[:, :1].expand(-1, other, -1, -1)):
        return None
    return other


def input_shape_of(spec: ProblemSpec, teacher: Teacher) -> tuple[int, ...] | None:
    """The shape of one input as far as it is known without data."""
    if spec.input_shape is not None and spec.data is not None:
        raise UserError("give data or an input shape, not both; either one says what the teacher takes")
    if spec.input_shape is not None:
        return spec.input_shape
    return teacher.input_shape if spec.data is None else None


def example_of(spec: ProblemSpec, teacher: Teacher, data: Data | None) -> Tensor:
    """Inputs `(EXAMPLES, ...)` on the CPU: the data's if it is loaded, else zeros of the shape that is known. Raises UserError."""
    if data is not None:
        return data.calibration(EXAMPLES)
    shape = input_shape_of(spec, teacher)
    if shape is None:
        raise UserError(
            f"the teacher {teacher.name!r} does not say what it takes; give an input shape, for example 3,224,224, or data"
        )
    return torch.zeros(EXAMPLES, *shape)


def _kind(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} of {', '.join(map(repr, list(found)[:4]))}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)} parts"
    return f"a {type(found).__name__}"
