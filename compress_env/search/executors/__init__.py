"""Where students are judged: here, one after the other, or several at once in processes or on a Ray cluster.

An executor is a small file with a class of its name; `EXECUTORS` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.objective import Objective
from compress_env.registry import load_attribute
from compress_env.surgery.plan import Plan

EXECUTORS = {
    "serial": "compress_env.search.executors.serial:Serial",
    "processes": "compress_env.search.executors.processes:Processes",
    "ray": "compress_env.search.executors.on_ray:OnRay",
}
"""By name, `module:class`, so that one that needs a package of its own is loaded only where it is asked for."""


@dataclass(frozen=True, eq=False)
class Task:
    """A student to judge.

    Attributes:
        removed: Blocks that go, or are inserted.
        widths: Channels that the groups keep, `(groups,)`.
        limits: By resource, in its unit.
    """

    removed: frozenset[str]
    widths: np.ndarray
    limits: Mapping[str, float]


class Outcome(NamedTuple):
    """A judged student.

    Attributes:
        plan: The plan, changed as little as needed to meet hard limits.
        evaluation: Its numbers.
        repeated: Whether it had been judged before; None where only the search can tell.
    """

    plan: Plan
    evaluation: Evaluation
    repeated: bool | None = None


class Executor(Protocol):
    """Judges students, `places` at once.

    Attributes:
        places: How many are judged at once.
    """

    places: int

    def submit(self, task: Task) -> Future[Outcome]:
        """Have a student judged. What comes of it does not depend on where, nor on what is judged beside it."""

    def close(self) -> None:
        """End; what has not been judged is given up."""


def executor_for(objective: Objective, workers: int, cluster: str | None) -> Executor:
    """The executor for so many workers.

    Args:
        objective: What students are judged by.
        workers: Students at once; 1 without a cluster judges in this process.
        cluster: A Ray cluster, "auto" or its address.

    Raises:
        UserError: If the objective can only be judged by in this process, and alone.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    if workers == 1 and cluster is None:
        return load_attribute(EXECUTORS["serial"], "executor")(objective)
    if objective.own_evaluator:
        raise UserError("students are judged by an evaluator that was given as an object, which only this process has; set workers=1")
    measured = [name for name in objective.problem.cost_model.measured if name in objective.limited]
    if measured:
        raise UserError(
            f"the budget has a limit on {', '.join(measured)}, which is measured, and workers beside each other would disturb that; "
            "search with --workers 1"
        )
    if cluster is None:
        return load_attribute(EXECUTORS["processes"], "executor")(objective, workers)
    return load_attribute(EXECUTORS["ray"], "executor")(objective, workers, cluster)
