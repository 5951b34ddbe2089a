"""`Evaluation`: the numbers of one student. Plain Python, so that rewards need neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compress_env.records import Damaged, record

CAPACITY = 0.3
"""Exponent of the size in `proxy_score`."""


def proxy_score(kl: float, size: float, capacity: float = CAPACITY) -> float:
    """Predicts where a student that is not trained yet will come to, in [0, 1]: 1 / (1 + KL / size^0.3).

    Of two students that start equally far from the teacher, the one with more parameters comes closer. On few images the KL also
    tells students apart that differ by less than an image in their metric. The exponent is a good one for two draws of random plans
    of ResNet-20 (`python -m benchmarks.fidelity`).

    Args:
        kl: KL(teacher || student) of their predictions, in nats.
        size: Share of the teacher's parameters.
        capacity: The exponent.
    """
    return size**capacity / (size**capacity + kl)


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one student, all but `usage` measured on validation images.

    Attributes:
        metrics: The task's metrics by name, the main one first; higher is better.
        kl: KL(teacher || student) of the predictions in nats; None if it was not measured.
        usage: What the student uses, counted on the module that was built, in each resource's unit.
        teacher_metrics: The same metrics of the teacher.
        teacher_usage: The teacher's usage.
        failed: The reason why there are no metrics (they are 0 then), or "".
        seconds: How long it took; no part of what makes two evaluations equal.
        transient: Whether the machine was the cause of a failure (memory, time, disk, device): the plan is judged anew then.
    """

    metrics: Mapping[str, float]
    kl: float | None
    usage: Mapping[str, float]
    teacher_metrics: Mapping[str, float]
    teacher_usage: Mapping[str, float]
    failed: str = ""
    seconds: float = field(default=0.0, compare=False)
    transient: bool = False

    @property
    def metric(self) -> float:
        """The main metric."""
        return next(iter(self.metrics.values()))

    @property
    def teacher_metric(self) -> float:
        """The teacher's main metric."""
        return next(iter(self.teacher_metrics.values()))

    @property
    def size(self) -> float:
        """Share of the teacher's parameters."""
        return self.usage["params"] / self.teacher_usage["params"]

    @property
    def proxy_score(self) -> float:
        """The best prediction of the student's quality after distillation, 1 for the teacher itself.

        It is `proxy_score(kl, size)`; without a KL, the metric relative to the teacher's.
        """
        if self.kl is None:
            return self.metric / self.teacher_metric if self.teacher_metric else 0.0
        return proxy_score(self.kl, self.size)

    def meets(self, limits: Mapping[str, float]) -> bool:
        """Whether the usage is within every limit, in each resource's unit."""
        return all(self.usage[name] <= limit for name, limit in limits.items())

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The evaluation of `to_json`. Raises Damaged if it is none."""
        found = record(cls, data)
        if not found.metrics or found.metrics.keys() != found.teacher_metrics.keys():
            raise Damaged("the student's metrics are not the teacher's")
        return found
