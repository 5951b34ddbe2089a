"""`Result`: the content of `result.json`, teacher and student side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from compress_env.distill.finetune import Finetuned
from compress_env.errors import UnknownName, UserError
from compress_env.records import Damaged, record, value_of
from compress_env.resources.base import RESOURCES
from compress_env.search.promise import Promise

NETWORKS, OWN = ("teacher", "student"), ("metric_test", "file_bytes")
FORMAT = 3
"""Of `result.json`; counted up when an older one cannot be read any more."""


@dataclass(frozen=True)
class NetworkResult:
    """A network as it was measured in the end.

    Attributes:
        metric_test: The task's main metric on test data.
        usage: By resource, in its unit.
        file_bytes: Size of its weights as a safetensors file.
    """

    metric_test: float
    usage: Mapping[str, float]
    file_bytes: int


@dataclass(frozen=True)
class ResourceName:
    """A resource in texts; kept with results, so that those of a user's own resource are read without its code.

    Attributes:
        label: What tables call it.
        unit: What it is counted in.
        measured: Whether only running a network tells it.
    """

    label: str
    unit: str
    measured: bool = False

    @classmethod
    def of(cls, name: str) -> ResourceName:
        """The label and unit of a resource; of one that is not known here, its name without a unit. No code is loaded for it."""
        try:
            resource = RESOURCES.get(name.replace(":", " "))
        except UnknownName:
            return cls(name, "")
        return cls(resource.label, resource.unit, resource.measured)


@dataclass(frozen=True)
class FinalPolicy:
    """The student that a learned policy proposes without noise, before it was distilled.

    Attributes:
        metrics: The task's metrics on validation images.
        reward: Its reward.
        usage: By resource, in its unit.
    """

    metrics: Mapping[str, float]
    reward: float
    usage: Mapping[str, float]


@dataclass(frozen=True)
class LayerRow:
    """A row of `network_rows`, to check those of a file."""

    name: str
    kind: str
    before: int
    after: int
    status: str
    macs_before: float
    macs_after: float


@dataclass(frozen=True)
class Result:
    """The outcome of a run whose best student was distilled fully.

    Attributes:
        metric: Name of the task's main metric.
        teacher: The teacher's measurements.
        student: The student's.
        resources: Label and unit of every resource in their usage, in the order of tables.
        runtime: What measured resources were measured with.
        budget: The limits that the student was for, in each resource's unit.
        feasible: Whether it meets them.
        evaluations: Students that the search judged.
        seconds: How long the search took, None if it is not known.
        agent: The agent that searched.
        seed: Of everything random.
        best_trial: Index of the trial that the student is of.
        final_policy: The learned policy's student; None without a policy.
        finetune: How the distillation went: `Finetuned` with its history as `{"epoch", "validation"}`.
        exports: By file, the largest difference of outputs as a share of the largest output; None for a format that failed, or
            whose packages are not installed.
        layers: A row a layer, as by `network_rows`.
        versions: Of the packages that it depends on.
        command: The command line that asked for it, if there was one.
        recipe: How the student was distilled: fields of `Recipe`, and the loss.
        metadata: What whoever uses the student has to know (`search.metadata`); `student.onnx` has it, too.
        by_class: The main metric of test examples by class, a row each; empty where all classes have as many.
        promise: What was promised of the student, if it was asked for with a largest drop (`compress_env.guarantee`).
        device: The processor that resources were measured on; empty where none was measured.
    """

    metric: str
    teacher: NetworkResult
    student: NetworkResult
    resources: Mapping[str, ResourceName]
    runtime: str
    budget: Mapping[str, float]
    feasible: bool
    evaluations: int
    seconds: float | None
    agent: str
    seed: int
    best_trial: int
    final_policy: FinalPolicy | None
    finetune: Mapping[str, Any]
    exports: Mapping[str, float | None]
    layers: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]
    command: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    by_class: Sequence[Mapping[str, Any]] = ()
    promise: Promise | None = None
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; the usage of teacher and student stands beside their other numbers."""
        found = asdict(self)
        for part in NETWORKS:
            found[part] |= found[part].pop("usage")
        return {"format": FORMAT} | found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The result of `to_json`. Raises UserError for one of another format, or with something missing."""
        data = dict(data) if isinstance(data, Mapping) else {}
        if (found := data.pop("format", 1)) != FORMAT:
            raise UserError(f"it is a result of format {found!r}, and this version reads {FORMAT}; run compress-env finetune again")
        for part in NETWORKS:
            if isinstance(data.get(part), Mapping):
                own = {name: data[part][name] for name in OWN if name in data[part]}
                data[part] = own | {"usage": {name: v for name, v in data[part].items() if name not in OWN}}
        try:
            found = record(cls, data)
            Finetuned.from_json(found.finetune)
            value_of(tuple[LayerRow, ...], found.layers, "layers")
            for network in (found.teacher, found.student):
                if not found.resources.keys() <= network.usage.keys():
                    raise Damaged("a resource is not in the usage of both networks")
            if not found.budget.keys() <= found.resources.keys():
                raise Damaged("a resource of the budget is unknown")
            return found
        except Damaged as error:
            raise UserError(f"it is damaged ({error}); run compress-env finetune again") from None
