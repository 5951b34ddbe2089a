"""Students that are judged at once, and recorded in their order whichever is judged first."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from compress_env.objective import Judged
from compress_env.search.executors import Executor, Outcome, Task
from compress_env.search.recorder import Recorder
from compress_env.surgery.plan import Plan


@dataclass(eq=False)
class Waiting:
    """A student that is judged.

    Attributes:
        task: The student.
        plan: Its plan.
        future: Its numbers, once it is judged.
        kept: Whether they are on the disk.
    """

    task: Task
    plan: Plan
    future: Future[Outcome]
    kept: bool = False


class Queue:
    """Students that are judged, the first one first. What is judged before its turn is kept on the disk until then.

    Args:
        recorder: Knows students that were judged before, and keeps others.
        executor: Judges them.
    """

    def __init__(self, recorder: Recorder, executor: Executor):
        self._recorder, self._executor = recorder, executor
        self._waiting: deque[Waiting] = deque()

    def add(self, task: Task) -> None:
        """Have a student judged, unless it is known or equals one that waits."""
        self._waiting.append(self._submitted(task))

    def show(self) -> None:
        """Show how many workers are judging."""
        self._recorder.busy(len({each.future for each in self._waiting if not each.future.done()}), self._executor.places)

    def _submitted(self, task: Task) -> Waiting:
        recorder = self._recorder
        plan = recorder.objective.problem.graph.canonical(task.removed, task.widths)
        if not recorder.measures:
            if (known := recorder.known(plan)) is not None:
                return Waiting(task, plan, _done(Outcome(plan, known)), kept=True)
            for other in self._waiting:
                if other.plan == plan and other.task.limits == task.limits:
                    return Waiting(task, plan, other.future, kept=True)
        return Waiting(task, plan, self._executor.submit(task))

    def first(self) -> Judged:
        """The first one, judged; it is taken out."""
        self._wait()
        first = self._waiting.popleft()
        outcome = first.future.result()
        return self._recorder.objective.judged(outcome.plan, outcome.evaluation, first.task.limits, outcome.repeated)

    def _wait(self) -> None:
        """Until the first is judged, note what is judged before it."""
        first = self._waiting[0]
        while True:
            for each in self._waiting:
                if each is not first and not each.kept and each.future.done() and not each.future.exception():
                    self._recorder.keep(each.future.result())
                    each.kept = True
            if first.future.done():
                return
            wait([each.future for each in self._waiting if not each.future.done()], return_when=FIRST_COMPLETED)
            self.show()


def _done(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
