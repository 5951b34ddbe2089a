"""The pictures of a folder, listed without opening any: `labelled`, `pictures`. What is no file is refused by name."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compress_env.data.pictures import ENDINGS
from compress_env.errors import UserError

KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(frozen=True, eq=False)
class Listing:
    """Pictures of a folder.

    Attributes:
        paths: Their files.
        labels: The number of each one's class.
        names: The names of the classes.
    """

    paths: list[str]
    labels: list[int]
    names: list[str]


def labelled(folder: Path) -> Listing:
    """The pictures in the folders of a folder, each of which is a class, in the order of torchvision's `ImageFolder`.

    Raises:
        UserError: If a class has none, there is no class, or something cannot be read as a file; the message names it.
    """
    names = sorted(entry.name for entry in _entries(folder) if _is_folder(entry))
    if not names:
        raise UserError(f"{folder} has no folder for each class, {folder / 'CLASS'}; give pictures without labels as images:DIR")
    paths: list[str] = []
    labels: list[int] = []
    empty, others = [], [e.name for e in _entries(folder) if e.name not in set(names) and not e.name.startswith(".")]
    for number, name in enumerate(names):
        found = list(_pictures(str(folder / name), (), others))
        if not found:
            empty.append(name)
        paths += found
        labels += [number] * len(found)
    if empty:
        raise UserError(f"{folder}: no pictures in the class folders {', '.join(empty[:5])}; they end in {', '.join(ENDINGS)}")
    _tell(folder, others)
    return Listing(paths, labels, names)


def pictures(folder: Path) -> Listing:
    """All pictures in a folder and the folders in it, of no class. Raises UserError as `labelled` does."""
    others: list[str] = []
    found = list(_pictures(str(folder), (), others))
    if not found:
        raise UserError(f"{folder} has no pictures; they end in {', '.join(ENDINGS)}")
    _tell(folder, others)
    return Listing(found, [0] * len(found), [])


def _tell(folder: Path, others: list[str]) -> None:
    if others:
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(f"{folder}: {len(others)} files are not taken for pictures of a class: {named}", stacklevel=4)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None


def _pictures(folder: str, above: tuple[tuple[int, int], ...], others: list[str]) -> Iterator[str]:
    """Files of a folder in order of their names, then those of each folder in it; what is no picture is noted in `others`."""
    own = os.stat(folder)
    if (own.st_dev, own.st_ino) in above:
        raise UserError(f"{folder} links to a folder that it lies in; remove the link")
    entries = sorted(_entries(folder), key=lambda e: e.name)
    folders = []
    for entry in entries:
        if _is_folder(entry):
            folders.append(entry)
            continue
        if entry.name.startswith("."):
            continue
        if not entry.name.lower().endswith(ENDINGS):
            others.append(entry.name)
        elif entry.is_file():
            yield entry.path
        else:
            raise UserError(f"{entry.path} is {_kind(entry)}, and no picture; remove it")
    for entry in folders:
        yield from _pictures(entry.path, (*above, (own.st_dev, own.st_ino)), others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise UserError(f"{entry.path} cannot be followed: {error.strerror}; remove the link") from None


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return KINDS.get(stat.S_IFMT(entry.stat().st_mode), "something else")
    except OSError:
        return f"a link to {os.readlink(entry.path)}, which is not there"
