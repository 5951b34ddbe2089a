"""The run folder: settings, trials that survive a crash, and results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress_env.errors import UserError
from compress_env.search.trial import Trial

INDIFFERENT = ("versions", "command")
"""What a run records that may differ when it is resumed."""


class RunFolder:
    """`run.json` (settings), `trials.jsonl` (one a line, appended and flushed to the disk) and `result.json` in a folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def admit(self, settings: dict[str, Any], resume: bool) -> None:
        """Raises UserError if there are trials and `resume` is False, or if they were made with other settings."""
        if not (self.trials_path.exists() and self.trials_path.stat().st_size):
            return
        if not resume:
            raise UserError(f"{self.path} has trials of an earlier run; add --resume to go on, or choose another --out")
        before, settings = self.settings(), json.loads(json.dumps(settings))
        for name in sorted({*before, *settings} - {*INDIFFERENT}):
            if before.get(name) != settings.get(name):
                raise UserError(
                    f"cannot resume {self.path}: it was begun with {name}={before.get(name)!r}, not {settings.get(name)!r}"
                )

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder and note the settings, unless a run that is resumed has noted them."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.path}: {error.strerror}") from error
        with alone_in(self.path):
            if not self.trials():
                self.write("run.json", settings)

    @property
    def trials_path(self) -> Path:
        return self.path / "trials.jsonl"

    def settings(self) -> dict[str, Any]:
        """What the run was begun with. Raises UserError if this is no run folder."""
        return self.read("run.json")

    def trials(self) -> list[Trial]:
        """All whole trials; a last line that was cut off by a crash is left out."""
        if not self.trials_path.exists():
            return []
        trials = []
        for line in self.trials_path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            trials.append(Trial.from_json(line))
        return trials

    def append(self, trial: Trial) -> None:
        """Write a trial so that it outlives a crash right after."""
        with self.trials_path.open("a") as file:
            file.write(trial.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def repair(self) -> None:
        """Cut a torn last line off, so that the next trial starts on a line of its own."""
        cut_torn_line(self.trials_path)

    def write(self, name: str, data: Any) -> None:
        """Write a JSON file whole or not at all."""
        temporary = self.path / f".{name}.part"
        temporary.write_text(json.dumps(data, indent=2) + "\n")
        temporary.replace(self.path / name)

    def read(self, name: str) -> Any:
        """A JSON file of the run. Raises UserError that says what is missing."""
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{self.path} has no {name}; is it the folder of a run (the --out of compress-env search)?")
        return json.loads(path.read_text())


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the block, no other process works in `folder`, which exists. Raises UserError if one already does."""
    file = folder / ".lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is working in {folder}; wait until it ends, or choose another --out"
        ) from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def cut_torn_line(path: Path) -> None:
    """Shorten a file of lines by the last one if a crash left it unfinished."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
