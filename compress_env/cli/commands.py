"""Commands in which bad input is one line, and Ctrl-C no traceback."""

from __future__ import annotations

import errno
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from compress_env.errors import CannotWrite, UserError

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals by which Ctrl-C, a system, a queue or a terminal that is closed ends a command."""
BEGIN_AGAIN = ("inspect", "report", "export", "validate", "runs", "trials", "list", "learn", "push", "pull")
"""Commands that keep nothing to go on from."""
_received: list[int] = []
"""The signal that came."""
WAIT, LONGEST_WAIT = 0.05, 30.0
"""Seconds between looks whether an import is over, and seconds after which it is interrupted all the same."""


class _Failure(click.ClickException):
    """Bad input: one line, exit code 2."""

    exit_code = 2


@contextmanager
def _plainly(called: Callable[[], click.Command]) -> Iterator[None]:
    """Within the block, what goes wrong for reasons outside the program is a line; `called` says which command it is."""
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
        click.echo(f"\nInterrupted. {_how_to_go_on(called())}", err=True)
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
    """Within the block, SIGTERM and SIGHUP interrupt as Ctrl-C does, and all three wait until what is being imported is there.

    Raised amid an import, KeyboardInterrupt may be swallowed (torch-pruning has a bare `except:` around one), leave half of a module
    behind, of which another then fails, or end the process where C++ does not expect it.
    """
    waiting: list[threading.Timer] = []
    send = getattr(signal, "pthread_kill", lambda _, number: signal.raise_signal(number))  # Windows has no threads' signals

    def interrupt(number: int, frame: FrameType | None) -> None:
        _received[:] = [number]
        if _in_an_import(frame):
            waiting.append(threading.Timer(WAIT, send, [threading.main_thread().ident, number]))
            waiting[-1].start()
            if len(waiting) < LONGEST_WAIT / WAIT:
                return
        raise KeyboardInterrupt

    _received.clear()
    own = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ENDING if own and hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: do for number, do in before.items() if do in (signal.SIG_DFL, signal.default_int_handler)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    except (OSError, CannotWrite):
        raise
    except Exception:
        if _received:  # of compiled code that was interrupted, which says something else
            raise KeyboardInterrupt from None
        raise
    finally:
        for timer in waiting:
            timer.cancel()
        for number, do in before.items():
            signal.signal(number, do)


def _in_an_import(frame: FrameType | None) -> bool:
    """Whether a module is being imported where the program is."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


class Command(click.Command):
    """A command of its own: one line and exit code 2 for a UserError or a failing disk, 130 for Ctrl-C, and 143 for SIGTERM."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments."""
        with _plainly(lambda: self):
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with _plainly(lambda: self):
            return super().invoke(context)


class Group(click.Group):
    """The same for a command that has others."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with _plainly(lambda: context.meta.get(__name__) or self):
            return super().invoke(context)

    def resolve_command(self, context: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and note the one that is called in the end."""
        name, command, rest = super().resolve_command(context, args)
        called, words = command, iter(rest)
        while isinstance(called, click.Group):
            called = called.commands.get(next(words, ""))
        context.meta[__name__] = called
        return name, command, rest


def _how_to_go_on(command: click.Command) -> str:
    """What is to be done after a command was interrupted."""
    if command.name in BEGIN_AGAIN:
        return "The same command begins again."
    option = " with --resume" if any(parameter.name == "resume" for parameter in command.params) else ""
    return f"What was done so far is kept; the same command{option} goes on from there."
