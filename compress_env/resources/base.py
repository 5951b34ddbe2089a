"""What a resource is: a cost of a network with a unit, predicted from a plan and counted on the student that was built.

Most are computed: they derive from `Resource` and are one small class, as `params.py`. Where only running a student tells, as for
latency, they derive from `MeasuredResource`. `RESOURCES` knows them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.registry import Registry
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph, PrunedView
from compress_env.surgery.plan import Plan


class AnyResource:
    """What all resources say of themselves; derive from `Resource` or `MeasuredResource`.

    Attributes:
        name: What budgets, usages and files call it. If empty, it is the name that it is registered under, or for one given as
            `module:attribute` the attribute in lower case.
        label: What tables call it, as "MACs"; the name if empty.
        unit: What it is counted in, as "ms".
        multiples: Other units that a limit may be given in, with what one of them is in `unit`.
        channel_multiple: Where a limit on it favours widths that are multiples of a number, that number.
        measured: Whether only running a student tells.
        vectorised: Whether `predict` takes many widths as columns `(groups, n)` too and gives `(n,)`, which makes decisions faster.
    """

    name: str = ""
    label: str = ""
    unit: str
    multiples: Mapping[str, float] = {}
    channel_multiple: int = 1
    measured: ClassVar[bool] = False
    vectorised: bool = False


class Resource(AnyResource, ABC):
    """A resource that is computed. A new one needs a `unit`, `predict` and `count`."""

    @abstractmethod
    def predict(self, view: PrunedView, widths: np.ndarray) -> float | np.ndarray:
        """Usage of a plan, exactly what `count` finds on its student; called many times an episode, so in microseconds.

        Args:
            view: What is left of the teacher without the removed blocks.
            widths: Channels that each group keeps `(groups,)`; with `vectorised`, columns of them `(groups, n)`, too.

        Returns:
            The usage in `unit`; more channels never cost less.
        """

    @abstractmethod
    def count(self, student: fx.GraphModule, example: Tensor) -> float:
        """Usage of a student that was built.

        Args:
            student: In evaluation mode.
            example: One example with the batch in front, `(1, ...)`, on the student's device.

        Returns:
            The usage in `unit`, for one example.
        """


@dataclass(frozen=True)
class Context:
    """The problem that a measured resource is prepared for.

    Attributes:
        whole: The student of the empty plan, which students are measured beside.
        teacher: The module that students are built from.
        graph: What was found in the teacher.
        example: One example with the batch in front, `(1, ...)`.
        runtime: What will run the student.
        progress: Whether to show how far measuring is.
    """

    whole: fx.GraphModule
    teacher: nn.Module
    graph: LayerGraph
    example: Tensor
    runtime: RuntimeConfig
    progress: bool = False


class Candidate(NamedTuple):
    """A plan, the student built from it and what was counted on that, in each resource's unit."""

    plan: Plan
    student: fx.GraphModule
    usage: dict[str, float]

    def meets(self, limits: Mapping[str, float]) -> bool:
        """Whether no limit is exceeded."""
        return all(self.usage[name] <= limit for name, limit in limits.items())


@dataclass(frozen=True)
class Room:
    """What may be changed about a student to bring its measured usage within a limit, and how changes are tried.

    Attributes:
        teacher: The module that students are built from.
        graph: What was found in the teacher.
        removable: Blocks that may be removed.
        shrinkable: Mask `(groups,)` of groups whose widths may change.
        smallest: Widths `(groups,)` with which all limits can be met.
        limits: By resource, in its unit.
        count: Counts a student of a plan, as `CostModel.count`.
        fits: Whether a view with these widths is predicted to meet some limits, as `CostModel.fits`.
    """

    teacher: nn.Module
    graph: LayerGraph
    removable: frozenset[str]
    shrinkable: np.ndarray
    smallest: np.ndarray
    limits: Mapping[str, float]
    count: Callable[[fx.GraphModule, Plan], dict[str, float]]
    fits: Callable[[PrunedView, np.ndarray, Mapping[str, float]], bool]

    def build(self, removed: frozenset[str], widths: np.ndarray) -> Candidate:
        """The student without these blocks and with these widths `(groups,)`, counted."""
        plan = self.graph.canonical(removed, widths)
        student = build_student(self.teacher, self.graph, plan)
        return Candidate(plan, student, self.count(student, plan))

    def others_fit(self, name: str, removed: frozenset[str], widths: np.ndarray) -> bool:
        """Whether all limits but that on `name` are predicted to be met."""
        return self.fits(self.graph.view(removed), widths, {n: v for n, v in self.limits.items() if n != name})


class Measurement(ABC):
    """A measured resource, ready for one problem. A plan is measured once, and its usage remembered.

    Attributes:
        teacher: Usage of the teacher, in the resource's unit.
        vectorised: As for resources.
    """

    vectorised: bool = False

    def __init__(self, teacher: float):
        self.teacher = teacher
        self._known: dict[str, list[float]] = {}  # each measurement, by the key of the plan

    @abstractmethod
    def predict(self, view: PrunedView, widths: np.ndarray) -> float | np.ndarray:
        """An estimate of the usage of a plan, in microseconds; arguments as for `Resource.predict`."""

    @abstractmethod
    def run(self, student: fx.GraphModule) -> float:
        """Measures a student once, in the resource's unit."""

    def keep(self, plan: Plan, usage: float) -> None:  # noqa: B027 - not every resource has a place for it
        """Write a measurement down for later runs, if there is a place for it."""

    def measure(self, student: fx.GraphModule, plan: Plan, times: int = 1) -> float:
        """The mean of at least `times` measurements; those of the same plan count, so that it is the same number next time."""
        known = self._known.setdefault(plan.key, [])
        while len(known) < times:
            known.append(self.run(student))
            self.keep(plan, known[-1])
        return float(np.mean(known))

    def remember(self, plan: Plan, usage: float, teacher: float) -> None:
        """Take the usage of a plan as recorded beside its teacher's, as from an earlier run: it is not measured again."""
        if teacher:
            self._known[plan.key] = 2 * [usage if teacher == self.teacher else usage / teacher * self.teacher]

    def repair(self, name: str, removed: frozenset[str], widths: np.ndarray, room: Room) -> Candidate | None:
        """Another student, where measuring tells that a prediction was wrong.

        Args:
            name: The resource's name among `room.limits`.
            removed: Blocks that the student lacks.
            widths: Its widths `(groups,)`.
            room: What may be changed.

        Returns:
            A student within all limits, or None if none was found; here the given one is all that is tried.
        """
        found = room.build(removed, widths)
        return found if found.meets(room.limits) else None


class MeasuredResource(AnyResource, ABC):
    """A resource that only running a student tells. A new one needs a `unit` and `prepare`."""

    measured = True

    @abstractmethod
    def prepare(self, context: Context) -> Measurement:
        """Gets ready to measure students of one teacher, and measures the teacher."""

    def compare(self, context: Context, student: fx.GraphModule) -> tuple[float, float]:
        """Usage of the teacher and of one student, as for a report; to be overridden where that needs no `prepare`."""
        ready = self.prepare(context)
        return ready.teacher, ready.run(student)


class ResourceRegistry(Registry):
    """Resources by name. `get` also takes `module:attribute` and `file.py:attribute`, a class or an object.

    One that is given so gets a name: its `name`, or the attribute in lower case (`energy.py:Energy` is "energy"). From then on it is
    found under that name.
    """

    def __init__(self) -> None:
        super().__init__("resource")
        self._loaded: dict[str, AnyResource] = {}
        self._made: dict[Any, AnyResource] = {}  # of each class or object that was named, so that it is made once

    def register(self, name: str) -> Callable[[Any], Any]:
        """A decorator that enters a resource under `name`: a class, of which an object is made, or an object."""
        enter = super().register(name)

        def checked(entry: Any) -> Any:
            enter(_resource(entry, name, f"resource {name!r}"))
            return entry

        return checked

    def get(self, spec: str) -> AnyResource:
        """The resource of that name, or at `module:attribute`.

        Raises:
            UnknownName: There is none; the message suggests the nearest one.
            UserError: The attribute is no resource, or has the name of one that is registered.
        """
        if spec in self._loaded:
            return self._loaded[spec]
        entry = super().get(spec)
        if spec in self._entries:
            return entry
        if entry in self._made:
            return self._loaded.setdefault(self._made[entry].name, self._made[entry])
        found = _resource(entry, spec.rpartition(":")[2].lower(), f"resource {spec!r}")
        if found.name in self._entries:
            raise UserError(f"resource {spec!r}: {found.name!r} is the name of another resource; give it a `name` of its own")
        self._loaded[found.name] = self._made[entry] = found
        return found


def _resource(entry: Any, name: str, what: str) -> AnyResource:
    """The resource that `entry` is or makes, with a name and a label. Raises UserError if it is none."""
    try:
        found = entry() if isinstance(entry, type) else entry
    except TypeError as error:
        raise UserError(f"{what} cannot be made, without arguments: {error}") from error
    if not isinstance(found, (Resource, MeasuredResource)):
        raise UserError(f"{what} is {entry!r}, which does not derive from compress_env.resources.base.Resource")
    if not isinstance(getattr(found, "unit", None), str):
        raise UserError(f"{what} has no unit; give the class one, for example unit = 'mJ'")
    found.name = found.name or name
    found.label = found.label or found.name
    return found


RESOURCES = ResourceRegistry()
"""All resources. Those that come with the package are counted for every problem unless they are measured; others where a budget
names them."""


def amount(value: float) -> str:
    """A usage for messages: counts in full, since they are limits to ask for next; small measurements with four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
