"""`check_teacher`: whether a network can be compressed, and its students are what they are said to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.data.dataset import Data
from compress_env.distill.checkpoint import snapshot
from compress_env.resources.cost_model import CostModel
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.tasks import load_task
from compress_env.teachers import load_teacher
from compress_env.testing import networks
from compress_env.testing.require import calling, number, require


def check_teacher(
    teacher: Any,
    example: Tensor | tuple[Tensor, ...] | Data,
    *,
    task: Any = "classification",
    plans: int = 8,
    seed: int = 0,
    protect: Sequence[str] = (),
) -> None:
    """Check that a network can be traced and that students of random plans are valid.

    The student of the empty plan computes what the teacher does, bit for bit. Others run, keep the shape of the output, cost what was
    predicted, and share no storage with the teacher, which is not changed.

    Args:
        teacher: A module in evaluation mode, a name, `module:factory` or `path/to/file.py:factory`.
        example: Inputs `(n, ...)`, a tuple of them for several inputs, or data, whose labels the outputs then have to suit.
        task: What the outputs mean; used with data only.
        plans: How many random plans are tried.
        seed: Of the random plans.
        protect: Patterns of names of layers that stay as they are.

    Raises:
        AssertionError: Naming what is wrong.
    """
    loaded = load_teacher(teacher)
    what, module = f"teacher {loaded.name!r}", loaded.module
    require(not module.training, f"{what} is in training mode; call .eval() on it")
    inputs = _inputs(example)
    before, modes = snapshot(module), [m.training for m in module.modules()]
    with torch.no_grad(), calling(f"{what}: its forward pass"):
        outputs = module(*inputs)
    require(isinstance(outputs, Tensor), f"{what} returns a {type(outputs).__name__}; it has to return one tensor")
    require(bool(torch.isfinite(outputs).all()), f"{what} has outputs that are not finite")
    with torch.no_grad():
        again = module(*inputs)
    require(torch.equal(again, outputs), f"{what} gives other outputs for the same inputs the second time")
    if isinstance(example, Data):
        with calling(f"{what} with the data {example.name!r}"):
            load_task(task).check(outputs, example, loaded.name)
    with calling(f"{what}: tracing it"):
        graph = trace(module, inputs, protect=protect)
    require(
        bool(graph.blocks or graph.groups),
        f"{what} has no block to remove and no group to shrink: {dict(graph.left_alone)}",
    )
    check_students(what, module, graph, inputs, outputs, plans, seed)
    require(networks.same(module, before), f"{what} was changed: it has other weights or buffers than before")
    require([m.training for m in module.modules()] == modes, f"{what} was changed: modules went to another mode")


def check_students(
    what: str,
    module: nn.Module,
    graph: LayerGraph,
    inputs: tuple[Tensor, ...],
    outputs: Tensor,
    plans: int,
    seed: int,
) -> None:
    """Check students of random plans of a traced teacher.

    Args:
        what: How messages call the teacher.
        module: The teacher.
        graph: Its graph.
        inputs: Inputs, each `(n, ...)`.
        outputs: The teacher's outputs for them.
        plans: How many random plans are tried.
        seed: Of the random plans.

    Raises:
        AssertionError: Naming the plan and what is wrong.
    """
    whole = build_student(module, graph, Plan())
    with torch.no_grad(), calling(f"{what}: the student of the empty plan"):
        require(torch.equal(whole(*inputs), outputs), f"{what}: the student of the empty plan computes something else")
    costs = CostModel(module, graph, inputs[0]) if len(inputs) == 1 else None
    own = networks.storages(module)
    for plan in networks.plans(graph, plans, seed):
        where = f"{what}: the student of {plan}"
        with torch.no_grad(), calling(where):
            student = build_student(module, graph, plan)
            got = student(*inputs)
        require(got.shape == outputs.shape, f"{where} gives {tuple(got.shape)} instead of {tuple(outputs.shape)}")
        require(not own & networks.storages(student), f"{where} shares storage with its teacher")
        view, widths = graph.view(plan.switched), graph.widths(plan)
        size, counted = view.parameters(widths), sum(p.numel() for p in student.parameters())
        require(counted == size, f"{where} has {counted} parameters, of which {size} were predicted")
        if costs is None:
            continue
        for name, usage in costs.count(student, plan).items():
            predicted = number(costs.predict(name, view, widths), f"{where}: predicting its {name}")
            require(
                abs(predicted - usage) <= 1e-9 * usage, f"{where} uses {usage} of {name}; {predicted} was predicted"
            )


def _inputs(example: Tensor | tuple[Tensor, ...] | Data) -> tuple[Tensor, ...]:
    if isinstance(example, Data):
        return (example.calibration(2),)
    return example if isinstance(example, tuple) else (example,)
