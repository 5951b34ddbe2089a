"""What the tests of the allocation and of walks that are relative to it have in common."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from compress_env.agents.uniform import staged
from compress_env.allocation.solver import Allocation
from compress_env.objective import Objective
from compress_env.spec import EnvironmentSpec
from compress_env.walk.relative import RelativeWalk

QUICK: dict[str, Any] = {"evaluator": {"calibration_images": 64, "validation_images": 100}}
SPEC = EnvironmentSpec.of_keywords(**QUICK)
BUDGETS = ({"macs": 1.0}, {"params": 1.0}, {"memory": 1.0}, {"macs": 1.0, "params": 0.7}, {"macs": 0.9, "memory": 1.0},
           {"macs": 1.0, "params": 0.8, "memory": 1.1})  # fmt: skip
SHARES_OF_TEACHER = (0.8, 0.5, 0.3, 0.15)

def anew(objective: Objective, **settings: Any) -> Objective:
    """An objective of the same problem with other settings, which knows the sensitivities."""
    spec = EnvironmentSpec.of_keywords(**{**QUICK, **settings})
    return Objective(spec, problem=objective.problem, sensitivities=objective.sensitivities)


def limits_of(objective: Objective, budget: dict[str, float], share: float) -> dict[str, float]:
    teacher = objective.problem.cost_model.teacher
    return {name: min(share * factor, 1.0) * teacher[name] for name, factor in budget.items()}


def plan_of(objective: Objective, allocation: Allocation):
    return objective.problem.graph.canonical(allocation.removed, allocation.widths)


def uniform_plan(objective: Objective, limits: dict[str, float]) -> Allocation:
    plan = staged(objective, np.zeros(1), limits)
    return Allocation(frozenset(plan.removed), objective.problem.graph.widths(plan))


def walked(objective: Objective, limits: dict[str, float], actions: np.ndarray):
    """The finished walk of actions `(steps, 2)`."""
    return stepped(objective.begin(limits), actions)


def far(objective: Objective, limits: dict[str, float], factor: float = 4.0) -> RelativeWalk:
    """A walk whose actions lead farther than those of the environment do."""
    allocator = copy(objective.allocator)
    allocator.factor = lambda reference: factor
    return RelativeWalk(objective.problem, allocator, objective.reference(limits))


def stepped(walk, actions: np.ndarray):
    for keep, sparsity in actions.tolist():
        walk.step(keep, sparsity)
    assert walk.done
    return walk


def alike(a: Allocation, b: Allocation) -> bool:
    return a.removed == b.removed and np.array_equal(a.widths, b.widths)
