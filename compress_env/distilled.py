"""`DistillationResult`: the content of the `result.json` of a distillation without a search, teacher and student side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NetworkNumbers:
    """A network as it was measured in the end.

    Attributes:
        metric_validation: The task's main metric on validation data.
        metric_test: The same on test data.
        params: Its parameters.
        macs: MACs for one example.
        file_bytes: Size of its weights as a safetensors file.
    """

    metric_validation: float
    metric_test: float
    params: float
    macs: float
    file_bytes: int


@dataclass(frozen=True)
class DistillationResult:
    """The content of `result.json`; fields that a run has, too, are those of `search.result.Result`.

    Attributes:
        metric: Name of the task's main metric.
        teacher: The teacher's measurements.
        student: The student's, as good as its best epoch.
        finetune: How the distillation went: `Finetuned` with its history as `{"epoch", "validation"}`.
        recipe: Fields of `Recipe`, the loss, and its temperature and label weight where it has them.
        exports: By file, the largest difference of outputs as a share of the largest output; None for a format that failed,
            or whose packages are not installed.
        metadata: What the student takes and gives.
        by_class: The main metric of test examples by class, a row each; empty where all classes have as many.
    """

    metric: str
    teacher: NetworkNumbers
    student: NetworkNumbers
    finetune: Mapping[str, Any]
    recipe: Mapping[str, Any]
    exports: Mapping[str, float | None]
    metadata: Mapping[str, Any]
    by_class: Sequence[Mapping[str, Any]] = ()
