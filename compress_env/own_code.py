"""Code of a user's own by its place, `module:attribute` or `path/to/file.py:attribute`, and which of it a file may have run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from compress_env.errors import UserError

Trust = bool | Collection[str]
"""Of code that a file names: True for all of it, or the places that the caller names, too."""
NO_CODE = ("weights", "device", "protect", "removable", "shrinkable")
"""Settings in which a colon has another meaning."""
READ = ("imagefolder:", "images:", "hf:")
"""How data begins that is read and never run."""


def load_module(place: str, what: str) -> ModuleType:
    """The module of this name, or in this file. Raises UserError if there is none, or if it cannot be imported.

    A file is run once, unless it has changed, and finds modules beside it. A module that is not installed is looked for in the
    current folder.
    """
    if place.endswith(".py"):
        return _file(place, what)
    try:
        return _module(place)
    except UserError:
        raise
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}; is it installed, or in the current folder?") from None
    except Exception as error:  # noqa: BLE001 - whatever the module raises
        raise UserError(f"{what}: importing {place} failed: {type(error).__name__}: {error}") from error


def code_id(thing: Any) -> str:
    """A name for the code of a function, class or object: equal as long as its file is; "" for this package's."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    if isinstance(thing, ModuleType):
        module = thing
    if module is None or module.__name__.split(".")[0] == __name__.split(".")[0]:
        return ""
    try:
        return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:12]
    except (OSError, AttributeError):  # a module that came from no file, as in a notebook
        return module.__name__


def check_trust(settings: Mapping[str, Any], trust: Trust, where: str | Path) -> None:
    """Look whether code that a file names may be run.

    Args:
        settings: What the file holds: values, texts among them, by their names.
        trust: What the caller trusts.
        where: The file.

    Raises:
        UserError: If it may not; the message says how to allow it.
    """
    if trust is True:
        return
    named = frozenset(trust or ())
    for name, text in _texts(settings):
        if _is_place(name, text) and text not in named:
            raise UserError(
                f"{where} names code to be run ({name}: {text}), and a file alone may not do that; if you trust it, give the option "
                "that names it again, or --trust; from Python trust=True"
            )


def _is_place(name: str, text: str) -> bool:
    return ":" in text and name not in NO_CODE and not (name == "data" and text.startswith(READ))


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested values, the keys of mappings that are no names of settings among them, with the setting that it is of."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if ":" in str(key):
                yield name or str(key), str(key)
            yield from _texts(part, name if ":" in str(key) else str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part, name)


def _module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place.split(".")[0]:
            raise  # it is there, and something that it imports is not
    with _importing_from(Path.cwd()):
        return importlib.import_module(place)


def _file(place: str, what: str) -> ModuleType:
    path = Path(place).expanduser()
    try:
        source = path.read_bytes()
    except OSError as error:
        reason = f"there is no file {path}" if not path.exists() else f"cannot read {path}: {error.strerror}"
        raise UserError(f"{what}: {reason}") from None
    path = path.resolve()
    digest = hashlib.sha256(os.fsencode(path) + b"\0" + source).hexdigest()
    name = f"{path.stem}-{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _importing_from(path.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(f"{what}: {_line_of(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _line_of(error: Exception, path: Path) -> str:
    """The file and the line in it that an error came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    number = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else lines[-1] if lines else None
    return f"{path}, line {number}" if number else str(path)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Within the block modules are looked for in this folder first, as by Python beside a script; afterwards, there last."""
    place = str(folder)
    known = place in sys.path
    if not known:
        sys.path.insert(0, place)
    try:
        yield
    finally:
        if not known:
            sys.path.remove(place)
            sys.path.append(place)


__all__ = ["Trust", "check_trust", "code_id", "load_module"]
