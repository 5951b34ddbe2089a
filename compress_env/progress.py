"""Signs of life for work that has no steps to count."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds


@contextmanager
def announced(what: str, progress: bool = True) -> Iterator[None]:
    """Say on standard error what is being done, if the block takes more than two seconds; quicker ones stay silent."""
    timer = threading.Timer(PATIENCE, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True  # never keeps a process alive
    if progress:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(text: str, progress: bool = True) -> None:
    """One line on standard error about something that was chosen or found, if progress is shown."""
    if progress:
        print(text, file=sys.stderr, flush=True)
