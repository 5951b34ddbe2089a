"""`Completed`: a whole plan on the way to a student, with what is predicted of it without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress_env.allocation.allocator import Allocator
from compress_env.allocation.solver import Allocation
from compress_env.evaluation import Evaluation, proxy_score


@dataclass(frozen=True, eq=False)
class Completed:
    """What is predicted of a plan.

    Attributes:
        plan: The plan.
        kl: KL(teacher || student) in nats: the sum of what its parts cost alone.
        usage: By resource, in its unit.
        teacher_usage: The teacher's.
    """

    plan: Allocation
    kl: float
    usage: Mapping[str, float]
    teacher_usage: Mapping[str, float]

    @classmethod
    def of(cls, plan: Allocation, allocator: Allocator) -> Completed:
        """What the allocator predicts of a plan."""
        cost_model = allocator.cost_model
        return cls(plan, allocator.kl(plan), cost_model.predict_all(plan.removed, plan.widths), cost_model.teacher)

    @property
    def score(self) -> float:
        """The predicted `proxy_score`, in [0, 1]."""
        return proxy_score(self.kl, self.usage["params"] / self.teacher_usage["params"])

    def evaluation(self, metric: str) -> Evaluation:
        """As if it had been judged: the metric is guessed to fall with the KL, as a share of the teacher's."""
        return Evaluation({metric: 1 / (1 + self.kl)}, self.kl, self.usage, {metric: 1.0}, self.teacher_usage)
