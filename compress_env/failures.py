"""What goes wrong with one student: its reason in one line, whether the machine was the cause, and a limit on the time it may take."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from compress_env.errors import InfeasibleBudget, InvalidPlan

T = TypeVar("T")
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed", "bad_alloc")
"""Parts of the messages, in lower case, with which torch and its libraries say that memory was short."""
DEVICE = ("cuda error", "hip error", "cudnn_status", "cublas_status")
"""Likewise for a device that does not work any more."""
FIRST = 3600.0
"""Seconds that the first evaluation of a process may take, unless a limit was given."""
TIMES, LEAST = 30.0, 60.0
"""The default limit of the others: so many times the first one's seconds, and at least so many seconds."""
AGAIN = 1.0
"""Seconds after which a limit strikes again, if code that catches everything went on."""


class EvaluationFailed(RuntimeError):
    """A student that gives no numbers.

    Attributes:
        transient: Whether the machine was the cause (memory, time, disk, device), so that another attempt may succeed.
        out_of_memory: Whether memory was short.
    """

    def __init__(self, reason: str, *, transient: bool = False, out_of_memory: bool = False):
        super().__init__(reason)
        self.transient, self.out_of_memory = transient or out_of_memory, out_of_memory


def reason_of(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of its message if it has one."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def short_of_memory(error: BaseException) -> bool:
    """Whether an exception, or the one that caused it, says that memory was short, on whatever device."""
    cause = error.__cause__
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(part in text for part in MEMORY) or bool(cause and short_of_memory(cause))


def of_the_machine(error: BaseException) -> bool:
    """Whether memory, a disk or a device was the cause of an exception, and not the network."""
    text = str(error).lower()
    return isinstance(error, OSError) or short_of_memory(error) or any(part in text for part in DEVICE)


def release_memory() -> None:
    """Give back what nothing refers to, to the system and to the device."""
    gc.collect()
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def failures() -> Iterator[None]:
    """Whatever a network raises, as EvaluationFailed with a reason in one line; neither Ctrl-C nor a plan or budget that is wrong."""
    try:
        yield
    except (EvaluationFailed, InvalidPlan, InfeasibleBudget):
        raise
    except Exception as error:  # noqa: BLE001 - what a network raises is up to its author
        raise EvaluationFailed(
            reason_of(error), transient=of_the_machine(error), out_of_memory=short_of_memory(error)
        ) from error


class Patience:
    """A limit on the seconds of each evaluation.

    Python code is stopped, also while it sleeps or waits; an operation of torch is when it returns. There is no limit outside of the
    main thread, nor where a system has no interval timer (Windows).

    Args:
        seconds: The limit, 0 for none; if None, a generous multiple of what the first evaluation takes.
    """

    def __init__(self, seconds: float | None = None):
        self._given = seconds
        self._first: float | None = None

    @property
    def seconds(self) -> float:
        """The limit of the next evaluation, 0 for none."""
        if self._given is not None:
            return self._given
        return FIRST if self._first is None else max(LEAST, TIMES * self._first)

    def __call__(self, work: Callable[[], T]) -> T:
        """What `work` returns.

        Raises:
            EvaluationFailed: If it takes too long, or raises an exception.
        """
        began = time.perf_counter()
        with failures():
            found = within(self.seconds, work)
        if self._first is None:
            self._first = time.perf_counter() - began
        return found


class _TimeUp(BaseException):
    """Raised amid the work; no Exception, so that libraries and networks do not take it for one of their own."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns within `seconds`; 0 for no limit. Raises EvaluationFailed if it takes longer."""
    if not seconds or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return work()
    began = time.monotonic()

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _TimeUp

    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)  # somebody else's, which goes on afterwards

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)

    try:
        try:
            return work()
        finally:
            restore()
    except _TimeUp:
        restore()  # it may have struck in the line that was to stop it
        raise EvaluationFailed(f"TimeoutError: it took longer than {seconds:g} s", transient=True) from None
