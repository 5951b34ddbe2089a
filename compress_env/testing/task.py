"""`check_task`: whether a task measures outputs as the search, the reward and the report expect it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress_env.registry import Registry
from compress_env.tasks import Task, load_task
from compress_env.testing.loss import check_loss
from compress_env.testing.require import calling, named, number, require


def check_task(task: Any, outputs: Tensor, labels: Tensor) -> None:
    """Check a task on outputs of a teacher.

    Its metrics are finite floats, the main one first; they do not hang on the order of the examples. The divergence is 0 for equal
    outputs and otherwise a finite number above 0, the agreement lies in [0, 1] and is 1 for equal outputs. Each loss is put
    through `check_loss`.

    Args:
        task: A name, `module:attribute` or `path/to/file.py:attribute`, a class or an object.
        outputs: Outputs `(n, ...)`, such as a trained network's, float32.
        labels: The labels of the same examples, `(n, ...)`.

    Raises:
        AssertionError: Naming the task and what is wrong.
    """
    what = named("task", task)
    with calling(what):
        found = load_task(task)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(outputs.shape, generator=generator) * outputs.float().std()
    students = {"near": outputs + 0.1 * noise, "far": outputs + noise, "certain": 30 * (outputs + noise)}
    order = torch.randperm(len(outputs), generator=generator)
    for name, student in {"the teacher's": outputs, **students}.items():
        metrics = _metrics(what, found, student, labels)
        shuffled = _metrics(what, found, student[order], labels[order])
        for key, value in metrics.items():
            require(
                abs(value - shuffled[key]) <= 1e-4 * (1 + abs(value)),
                f"{what}: {key} is {value} for {name} outputs and {shuffled[key]} for the same ones in another order",
            )
    with calling(f"{what}: divergence"):
        equal = number(found.divergence(outputs, outputs), f"{what}: divergence of equal outputs")
    require(abs(equal) < 1e-6, f"{what}: divergence of equal outputs is {equal} instead of 0")
    for name, student in students.items():
        with calling(f"{what}: divergence"):
            apart = number(found.divergence(student, outputs), f"{what}: divergence of {name} outputs")
        require(apart > 0, f"{what}: divergence of {name} outputs is {apart}; it has to be above 0")
        with calling(f"{what}: agreement"):
            share = number(found.agreement(student, outputs), f"{what}: agreement")
        require(0 <= share <= 1, f"{what}: agreement is {share}, which is not in [0, 1]")
    share = number(found.agreement(outputs, outputs), f"{what}: agreement of equal outputs")
    require(share == 1, f"{what}: agreement of equal outputs is {share} instead of 1")
    require(
        isinstance(found.losses, Registry), f"{what}: losses is a {type(found.losses).__name__} instead of a Registry"
    )
    require(found.loss in found.losses.names(), f"{what} distils with the loss {found.loss!r}, which it does not have")
    for name, loss in found.losses.items():
        check_loss(loss, outputs, labels, name=name)


def _metrics(what: str, task: Task, outputs: Tensor, labels: Tensor) -> Mapping[str, float]:
    before = outputs.clone(), labels.clone()
    with calling(f"{what}: metrics"):
        found, again = task.metrics(outputs, labels), task.metrics(outputs, labels)
    require(isinstance(found, Mapping) and bool(found), f"{what}: metrics gives {found!r} instead of numbers by name")
    require(next(iter(found)) == task.metric, f"{what}: metrics has {list(found)}; {task.metric!r} has to come first")
    for name, value in found.items():
        require(isinstance(value, float), f"{what}: {name} is {value!r}, which is no float")
        number(value, f"{what}: {name}")
    require(dict(found) == dict(again), f"{what}: metrics gives {found} first and {again} then")
    unchanged = torch.equal(outputs, before[0]) and torch.equal(labels, before[1])
    require(unchanged, f"{what}: metrics changes what it is given")
    return found
