"""Files that are whole or not there, and files of lines that survive a crash: everything this package writes goes through here."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any, Generic, TypeVar

from compress_env.errors import CannotWrite, UserError
from compress_env.records import record

Row = TypeVar("Row")
"""A dict, a dataclass of what JSON can hold, or a class with `to_json() -> dict` and `from_json(dict)`."""
FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = 64 << 10
"""Bytes; where fewer are left, whatever fails in writing fails because of that."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all, with the mode that new files of the user have.

    Args:
        path: The file. What is there stays until the new one is complete; a link is replaced, and not followed.

    Yields:
        A path beside it, with the same suffix, to write to; it takes the place of `path` if the block succeeds, and is deleted if not.

    Raises:
        UserError: The folder is missing or cannot be written, the disk is full, or something else than a file is there.
    """
    path = Path(path)
    _check_folder(path)
    _check_file(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with writing(path):
            part.unlink(missing_ok=True)  # of a killed process with the same number, or a link that somebody put there
            with part.open("xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.chmod(mode & 0o777)  # libraries that write by way of a temporary file leave it to its owner alone
            part.replace(path)
    finally:
        if os.path.lexists(part):
            part.unlink()


def remove(path: Path) -> None:
    """Delete a file, if it is there, and unfinished ones that processes left which were killed while they wrote it."""
    for file in (path, *path.parent.glob(f".{escape(path.stem)}.*.part{path.suffix}")):
        file.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Delete unfinished files in a folder that processes left which do not run any more."""
    for file in folder.glob(".*.part*"):
        number = file.name.rpartition(".part")[0].rpartition(".")[2]
        if number.isdecimal() and not process_runs(int(number)):
            file.unlink(missing_ok=True)


def make_folder(folder: str | Path) -> None:
    """Make a folder, and those that it is in, unless it is there. Raises UserError if that cannot be done."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {folder}: {error.strerror or error}; {_cure(error)}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises UserError as `atomic`."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all; on one line if `indent` is None. Raises UserError as `atomic`."""
    write_text(path, json.dumps(data, indent=indent) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises UserError if there is no such file, or if it is damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: it is damaged ({error}); restore it, or delete it and begin anew") from None


class JsonLines(Generic[Row]):
    """A file with a row a line, each written when it is known, so that an interruption loses none.

    A last line that a crash cut off is left out when the file is read, and cut off before a row is appended.

    Attributes:
        path: The file; it need not exist.
    """

    def __init__(self, path: str | Path, row: type[Row], *, header: bool = False):
        """A file of rows.

        Args:
            path: The file.
            row: The type of a row.
            header: Whether the first line holds the settings that all rows were made with; `begin` writes it.
        """
        self.path = Path(path)
        self._row, self._header = row, header

    @property
    def settings(self) -> dict[str, Any]:
        """The settings on the first line; nothing if there is no file, or if it has no header."""
        lines = self._lines() if self._header else []
        return self._parsed(1, lines[0]) if lines else {}

    def read(self) -> list[Row]:
        """All whole rows; none if there is no file. Raises UserError naming the line that is damaged, or of another format."""
        return [self._parsed(n, line, self._row) for n, line in enumerate(self._lines(), 1) if n > self._header]

    def stamp(self) -> tuple[int, ...]:
        """Numbers that are others when the file has changed; none if there is no file."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def begin(self, settings: Mapping[str, Any]) -> list[Row]:
        """Write the header if the file is new.

        Args:
            settings: What all rows are made with.

        Returns:
            The rows that are there.

        Raises:
            UserError: The file was begun with other settings; the first that differs is named.
        """
        self.repair()
        make_folder(self.path.parent)
        found, wanted = self.settings, json.loads(json.dumps(settings))
        if not self._lines():
            write_text(self.path, json.dumps(wanted) + "\n")
        elif name := difference(found, wanted):
            raise UserError(
                f"{self.path} was made with {name} {found.get(name)!r}, not {wanted.get(name)!r}; give another file or folder"
            )
        return self.read()

    def append(self, row: Row) -> None:
        """Write a row so that it outlives a crash right after. Raises UserError if the file cannot be written."""
        self.repair()
        make_folder(self.path.parent)
        with writing(self.path), open(self.path, "ab", opener=_no_link) as file:
            file.write(_line(row).encode())
            file.flush()
            os.fsync(file.fileno())

    def write(self, rows: Iterable[Row]) -> None:
        """Put these rows in the place of all that a file without a header holds. Raises UserError as `append`."""
        make_folder(self.path.parent)
        write_text(self.path, "".join(map(_line, rows)))

    def repair(self) -> None:
        """Cut a torn last line off, so that the next row starts on a line of its own."""
        if not self.path.exists():
            return
        with writing(self.path), open(self.path, "r+b", opener=_no_link) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if end and file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from None

    def _parsed(self, number: int, line: bytes, kind: Any = dict) -> Any:
        where = f"line {number} of {self.path}"
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError(f"it is no object but {str(data)[:40]!r}")
            if kind is dict:
                return data
            return kind.from_json(data) if hasattr(kind, "from_json") else record(kind, data)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where} is damaged, or was written by another version ({error}); restore the file, or begin anew in another place"
            ) from None


def _no_link(path: str, flags: int) -> int:
    """Opens a file to write to it, unless it is a link: somebody else's folder may have one to a file of one's own."""
    if os.path.islink(path):
        raise CannotWrite(f"{path} is a link, which is not written through; put the file itself there, or choose another place")
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The name of the first setting that differs, or ""."""
    return next((name for name in (*now, *before) if before.get(name) != now.get(name)), "")


def _line(row: Any) -> str:
    data = row if isinstance(row, dict) else row.to_json() if hasattr(row, "to_json") else asdict(row)
    return json.dumps(data) + "\n"


def process_runs(process: int) -> bool:
    """Whether a process of this machine runs, by its number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's
    return True


def _check_file(path: Path) -> None:
    """Refuse a device, a pipe or a folder in the place of a file, and the folders of the system's own: it would be replaced."""
    parent = path.parent.resolve()
    if (path.exists() and not path.is_file()) or (parent.is_relative_to("/dev") and not parent.is_relative_to("/dev/shm")):
        raise CannotWrite(f"cannot write {path}: there is no ordinary file in this place; choose another one")


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise CannotWrite(f"cannot write {path}: there is no folder {path.parent}; make it first")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in writing, as UserError: also where a library says it in its own words, and the system's are the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = system_error(error, path)
        if found is None:
            raise
        _check_folder(path)
        raise CannotWrite(f"cannot write {path}: {found.strerror or found}; {_cure(found)}") from error


def system_error(error: BaseException, path: Path) -> OSError | None:
    """The system's error that an exception in writing `path` is or came of, as where a library says it in its own words."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and (found is error or found.errno in FULL):
            return found
        found = found.__cause__ or found.__context__
    try:
        full = shutil.disk_usage(path.parent).free < ROOM
    except OSError as gone:
        return gone
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else None


def _cure(error: OSError) -> str:
    return "make room, or choose another place" if error.errno in FULL else "choose another place"
