"""Commands in which bad input is one line, and Ctrl-C no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from compress_env.errors import UserError


class _Failure(click.ClickException):
    """Bad input: one line, exit code 2."""

    exit_code = 2


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise _Failure(" ".join(str(error).split())) from error
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise _Failure(f"cannot use{where}: {error.strerror or error}; choose another place, or make room") from error
    except MemoryError as error:
        raise _Failure(f"there is too little memory for this: {error or 'no more is given'}; ask for less at once") from error
    except KeyboardInterrupt:
        click.echo(
            "\nInterrupted. What was done so far is kept; the same command goes on from there (a search with --resume).",
            err=True,
        )
        raise click.exceptions.Exit(130) from None


class Command(click.Command):
    """A command of its own that ends with exit code 2 and one line for a UserError or a failing disk, and with 130 for Ctrl-C."""

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
