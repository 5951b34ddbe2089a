"""Students are judged in processes of this machine, one at a time each, on one core each."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context

from compress_env.contexts import one_thread_in_children
from compress_env.errors import UserError
from compress_env.failures import FIRST
from compress_env.objective import Objective
from compress_env.search.executors import Outcome, Task
from compress_env.search.executors.pool import LATE, Pool, WorkerLost
from compress_env.search.executors.worker import Order, begin, judge


class Processes(Pool):
    """Worker processes, started when they are first needed.

    Args:
        objective: What students are judged by.
        workers: How many processes.
    """

    def __init__(self, objective: Objective, workers: int):
        super().__init__(objective, workers, lambda place: Process(Order.of(objective, place), objective.spec.timeout))


class Process:
    """A process that judges.

    Args:
        order: What it is told.
        timeout: Seconds that an evaluation may take, 0 or None for the usual limit.
    """

    def __init__(self, order: bytes, timeout: float | None):
        self._limit = LATE * (timeout or FIRST)
        with one_thread_in_children():
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), begin, (order, os.getpid()))
            self._pid = self._pool.submit(os.getpid)

    def judge(self, task: Task) -> Outcome:
        """The student, judged there."""
        try:
            return self._pool.submit(judge, task).result(self._limit)
        except (BrokenProcessPool, TooLate, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            if isinstance(error, TooLate):
                raise WorkerLost(f"no answer for {self._limit:g} s") from error
            if isinstance(error, BrokenProcessPool) or "shutdown" in str(error):
                raise WorkerLost("its process died") from error
            raise

    def end(self, idle: bool) -> None:
        """Stop the process, also in the middle of an operation of torch unless it is idle."""
        if not idle and self._pid.done() and not self._pid.exception():
            with suppress(ProcessLookupError):
                os.kill(self._pid.result(), signal.SIGTERM)
        self._pool.shutdown(wait=True, cancel_futures=True)
