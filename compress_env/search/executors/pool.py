"""Workers that may be lost: each judges one student at a time, and what a lost one was judging is tried again by a new one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.search.callbacks import warn
from compress_env.search.executors import Outcome, Task

LATE = 2.0
"""A worker that takes so many times the limit of an evaluation hangs where Python code cannot be stopped, and is ended."""
ATTEMPTS = 3
"""Workers that a student may cost before it counts as one that cannot be judged."""


class WorkerLost(RuntimeError):
    """A worker died, hangs, or cannot be reached; the message says what is known of it."""


class NoRoom(RuntimeError):
    """There is no core for a worker, and none to be expected; the message says where."""


class Worker(Protocol):
    """A place where students are judged."""

    def judge(self, task: Task) -> Outcome:
        """The student, judged. Raises WorkerLost if the worker is, and UserError if it can judge none at all."""

    def end(self, idle: bool) -> None:
        """Stop, at once: one that is idle in good order."""


class Pool:
    """Judges on workers; one that is lost costs nothing but the time of its student.

    A place without room for a worker is given up, and the others judge its students, so that the trials stay the same.

    Args:
        objective: What students are judged by; for those that cannot be.
        places: How many workers.
        start: Makes the worker of a place, numbered from 0, again if it was lost. Raises NoRoom.
    """

    def __init__(self, objective: Objective, places: int, start: Callable[[int], Worker]):
        self.places, self._objective, self._start = places, objective, start
        self._closed = False
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(places):
            self._free.put(place)
        self._workers: dict[int, Worker] = {}
        self._left, self._starting = places, threading.Lock()
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="compress_env-worker")

    def submit(self, task: Task) -> Future[Outcome]:
        """Have a student judged by the next free worker."""
        return self._threads.submit(self._judge, task)

    def close(self) -> None:
        """End all workers, whatever they are at."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        idle = set()
        while not self._free.empty():
            idle.add(self._free.get())
        for place, worker in list(self._workers.items()):
            worker.end(place in idle)
        self._threads.shutdown(wait=True)

    def _judge(self, task: Task) -> Outcome:
        place, reason = self._free.get(), ""
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    place = self._with_worker(place)
                    return self._workers[place].judge(task)
                except WorkerLost as error:
                    if self._closed:
                        raise
                    reason = str(error)
                    if place in self._workers:
                        self._workers.pop(place).end(idle=False)
                    what = "its student is tried again" if attempt < ATTEMPTS else "its student counts as failed"
                    warn(f"worker {place} is lost ({reason}); {what}", stacklevel=2)
        finally:
            self._free.put(place)
        return self._failed(task, f"{ATTEMPTS} workers were lost with it, the last: {reason}")

    def _with_worker(self, place: int) -> int:
        """This place, or the next free one if there is no room for its worker; it has one then. Raises WorkerLost for the last."""
        while place not in self._workers:
            try:
                with self._starting:
                    self._workers[place] = self._start(place)
            except NoRoom as error:
                if self._left == 1:
                    raise WorkerLost(str(error)) from error
                self._left -= 1
                warn(f"worker {place} is given up ({error}); the search goes on with {self._left}", stacklevel=2)
                place = self._free.get()
        return place

    def _failed(self, task: Task, reason: str) -> Outcome:
        plan, evaluator = self._objective.problem.graph.canonical(task.removed, task.widths), self._objective.evaluator
        assert isinstance(evaluator, Evaluator)  # one of one's own has no workers
        return Outcome(plan, evaluator.failed(plan, reason, transient=True))
