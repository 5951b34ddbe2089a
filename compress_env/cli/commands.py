"""Commands in which bad input is one line, and Ctrl-C no traceback."""

from __future__ import annotations

import errno
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from compress_env.errors import UserError

ENDING = ("SIGTERM", "SIGHUP")
"""Signals by which a system, a queue or a terminal that is closed ends a command."""
_received: list[int] = []
"""The one that came."""


class _Failure(click.ClickException):
    """Bad input: one line, exit code 2."""

    exit_code = 2


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        with _ends_like_ctrl_c(), _warnings_in_a_line():
            yield
    except UserError as error:
        raise _Failure(" ".join(str(error).split())) from error
    except click.UsageError as error:
        if "\n" not in error.format_message():
            raise
        raise click.UsageError(" ".join(error.format_message().split()), error.ctx) from error  # what was typed held line breaks
    except OSError as error:
        if error.errno == errno.EPIPE:  # of whoever reads what is printed; click knows what to do
            raise
        where = f" {error.filename}" if error.filename else ""
        raise _Failure(f"cannot use{where}: {error.strerror or error}; choose another place, or make room") from error
    except MemoryError as error:
        raise _Failure(f"there is too little memory for this: {error or 'no more is given'}; ask for less at once") from error
    except KeyboardInterrupt:
        click.echo(
            "\nInterrupted. What was done so far is kept; the same command goes on from there (a search with --resume).",
            err=True,
        )
        raise click.exceptions.Exit(128 + (_received.pop() if _received else signal.SIGINT)) from None


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Within the block, warnings of ours are a line on standard error, without the place in the code."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if category.__module__.startswith("compress_env."):
                click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
            else:
                others(message, category, *place, **rest)

        warnings.showwarning = show
        yield


@contextmanager
def _ends_like_ctrl_c() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP interrupt as Ctrl-C does."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        _received[:] = [number]
        raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ENDING if own and hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Command(click.Command):
    """A command of its own: one line and exit code 2 for a UserError or a failing disk, 130 for Ctrl-C, and 143 for SIGTERM."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments."""
        with _plainly():
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with _plainly():
            return super().invoke(context)


class Group(click.Group):
    """The same for a command that has others."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with _plainly():
            return super().invoke(context)
