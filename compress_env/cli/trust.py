"""`--trust`, of commands that read run folders: code that a folder names runs only if the command names it, too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress_env.errors import UserError
from compress_env.own_code import Trust

if TYPE_CHECKING:
    from compress_env.search.store import RunFolder

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
AGAIN = ("--teacher", "--data", "--task", "--ranking", "--reward", "--resource", "--budget", "--evaluator")
"""Options of a search that can name code of a user's own."""


def trusting(command: Decorated) -> Decorated:
    """A decorator that gives a command `--trust`, as an argument for `trust_of`, and the options of AGAIN that it does not have."""
    taken = {name for option in getattr(command, "__click_params__", []) for name in option.opts}
    for flag in AGAIN:
        if flag not in taken:
            command = click.option(flag, multiple=True, hidden=True, expose_value=False, callback=_again)(command)
    return click.option(
        "--trust", is_flag=True, help="Run code of one's own that the run names, such as a reward in a file. Without it, the option "
        f"that names it has to be given again ({', '.join(AGAIN[:-1])} or {AGAIN[-1]}).",
    )(command)  # fmt: skip


def trust_of(folders: Iterable[RunFolder], everything: bool, also: Collection[str] = ()) -> Trust:
    """What code of run folders to trust.

    Args:
        folders: The run folders.
        everything: Whether `--trust` was given.
        also: Places that the command names anyway.

    Raises:
        UserError: If an option was given again with a value that none of the folders was made with: it would be ignored.
    """
    again = click.get_current_context().meta.get(__name__, [])
    folders = list(folders)
    for value in again:
        if not any(value in _values(folder.recorded()["environment"]) for folder in folders):
            raise UserError(
                f"{folders[0].path if folders else 'the student'} was not made with {value!r}; leave that option out, or give the "
                "value that it was made with"
            )
    return everything or {*again, *also}


def _again(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
    """Note what was given again: of a budget the name of its resource, of a setting of the evaluator its value."""
    part = {"--budget": 0, "--evaluator": 2}.get(parameter.opts[0])
    places = values if part is None else [value.rpartition("=")[part] for value in values]
    context.meta.setdefault(__name__, []).extend(places)


def _values(value: Any) -> set[str]:
    """Every value in nested settings as a text, with the names of mappings."""
    if isinstance(value, dict):
        return set(value).union(*map(_values, value.values()))
    if isinstance(value, list):
        return set().union(*map(_values, value))
    return {str(value)}
