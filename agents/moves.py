"""Small changes of a student's actions: what a local search tries next, and how students are mutated."""

from __future__ import annotations

import numpy as np

from compress_env.objective import Objective


def neighbours(objective: Objective, step: int, value: float, size: float) -> list[float]:
    """Values beside `value` of the action at a step that lead to other students.

    Args:
        objective: Says what actions mean.
        step: Of the walk.
        value: In [-1, 1].
        size: How far to go where there are many.
    """
    if objective.actions != "relative" and not objective.problem.decisions[step].shrinks:
        return [-1.0 if value >= 0 else 1.0]
    return [max(value - size, -1.0), min(value + size, 1.0)]


def mutated(objective: Objective, actions: np.ndarray, rng: np.random.Generator, changed: float, deviation: float) -> np.ndarray:
    """Actions of which one is changed, and on average `changed` others: by normal deviates, or a block kept where it was removed.

    Args:
        objective: Says what actions mean.
        actions: One for each step, `(steps,)` in [-1, 1].
        rng: Draws what is changed.
        changed: How many more than one.
        deviation: Of the deviates, at most; how large they are is drawn, too.
    """
    steps = objective.steps
    which = rng.random(steps) < changed / steps
    which[rng.integers(steps)] = True
    other = np.clip(actions + rng.normal(0, rng.uniform(0, deviation), steps), -1, 1)
    if objective.actions != "relative":
        removals = np.array([not d.shrinks for d in objective.problem.decisions])
        other[removals] = np.where(actions[removals] >= 0, -0.5, 0.5)
    return np.where(which, other, actions)
