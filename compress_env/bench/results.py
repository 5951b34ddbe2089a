"""A results file: settings on the first line, then a row a line, each written when it is known, so that an interruption loses none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from compress_env.errors import UserError
from compress_env.search.store import cut_torn_line

Row = TypeVar("Row")
"""A dataclass of what JSON can hold."""


def read(path: Path, kind: type[Row]) -> tuple[dict[str, Any], list[Row]]:
    """Settings and rows of a file, a last line that was cut off left out; nothing if there is no file."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return (json.loads(lines[0]) if lines else {}), [kind(**json.loads(line)) for line in lines[1:]]


class Results(Generic[Row]):
    """The file at `path`, begun with `settings` if it is new. rows: what it holds.

    Raises UserError naming the first setting that differs if it was begun with others.
    """

    def __init__(self, path: Path, kind: type[Row], settings: Mapping[str, Any]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        found, self.rows = read(path, kind)
        settings = json.loads(json.dumps(settings))
        if not found:
            path.write_text(json.dumps(settings) + "\n")
            return
        for name, value in settings.items():
            if value != found.get(name):
                raise UserError(
                    f"{path} was made with {name} {found.get(name)!r}, not {value!r}; give another file or folder"
                )

    def append(self, row: Row) -> None:
        """Add a row, on the disk too."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self.rows.append(row)
