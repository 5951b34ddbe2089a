"""Students are judged in this process, one after the other."""

from __future__ import annotations

from concurrent.futures import Future

from compress_env.objective import Objective
from compress_env.search.executors import Outcome, Task


class Serial:
    """Judges a student when it is submitted.

    Args:
        objective: What students are judged by.
    """

    places = 1

    def __init__(self, objective: Objective):
        self._objective = objective

    def submit(self, task: Task) -> Future[Outcome]:
        """The student, judged."""
        future: Future[Outcome] = Future()
        judged = self._objective.judge_plan(task.removed, task.widths, task.limits)
        future.set_result(Outcome(judged.plan, judged.evaluation, judged.repeated))
        return future

    def close(self) -> None:
        """Nothing to end."""
