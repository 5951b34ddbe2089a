"""The run folder: settings, trials that survive a crash, and results."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.files import JsonLines, difference, make_folder, read_json, remove_parts, write_json, writing
from compress_env.own_code import Trust, check_trust
from compress_env.problem import Problem
from compress_env.records import Damaged, record, value_of
from compress_env.search.result import Result
from compress_env.search.trial import Trial, versions
from compress_env.search.trials import Trials
from compress_env.spec import EnvironmentSpec, SearchSpec
from compress_env.surgery.plan import Plan

FORMAT = 3
"""Of `run.json`; counted up when an older one cannot be read any more."""

RESULT = "result.json"
HOLDER = "process.json"
"""The process that works in a folder; there while it does."""
BEGUN = "begun.json"
"""For a search without a `run.json`."""
ASKED = "asked.json"
"""Of a search that was gone on with: how many evaluations it is to have now, where it was begun with another number."""
MAY_CHANGE = ("evaluations", "timeout", "workers", "cluster", "callbacks", "tensorboard")
"""Settings that a search which is resumed may have others of."""


@dataclass(frozen=True)
class RunSettings:
    """What `run.json` consists of."""

    format: int
    environment: Mapping[str, Any]
    search: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str | None


@dataclass(frozen=True)
class Ahead:
    """A student that was judged before its turn.

    Attributes:
        problem: `Problem.id` of its problem.
        ranking: `Ranking.id` of the order by which channels were kept.
        plan: The plan, as JSON.
        evaluation: Its numbers.
    """

    problem: str
    ranking: str
    plan: str
    evaluation: Evaluation

    @classmethod
    def of(cls, problem: Problem, plan: Plan, evaluation: Evaluation) -> Ahead:
        """The line of a judged student."""
        return cls(problem.id, problem.ranking.id, plan.to_json(), evaluation)


class RunFolder:
    """The folder of a run.

    It holds `run.json` (settings), `problem.json` (what was measured on images beforehand), `trials.jsonl` (a trial a line, flushed to
    the disk) and `result.json`; of a search with several workers that is not over, `ahead.jsonl` (students judged before their turn).

    Attributes:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._trials = JsonLines(self.path / "trials.jsonl", Trial)
        self._read: tuple[tuple[int, ...], list[Trial]] | None = None
        self._ahead = JsonLines(self.path / "ahead.jsonl", Ahead)

    def admit(self, environment: EnvironmentSpec, search: SearchSpec, resume: bool) -> None:
        """Check that a search may write here.

        One that is resumed may have another number of evaluations, and another limit on the time of each.

        Raises:
            UserError: If there are trials and `resume` is False, or if they were made with other settings; the first that differs is
                named.
        """
        path = self._trials.path
        if not (path.exists() and path.stat().st_size):
            return
        if not resume:
            raise UserError(f"{self.path} has trials of an earlier run; add --resume to go on, or choose another --out")
        now = flat({"environment": environment.to_json(), "search": search.to_json()})
        before = flat(self.recorded()) | {name: now[name] for name in MAY_CHANGE}
        if name := difference(before, now):
            raise UserError(
                f"cannot resume {self.path}: it was begun with {name}={before.get(name)!r}, not {now.get(name)!r}"
            )

    def begin(self, environment: EnvironmentSpec, search: SearchSpec, command: str | None = None) -> None:
        """Make the folder and note the settings, unless a run that is resumed has noted them."""
        make_folder(self.path)
        run = {
            "format": FORMAT, "environment": environment.to_json(), "search": search.to_json(), "versions": versions(),
            "command": command,
        }  # fmt: skip
        with alone_in(self.path):
            if not self.trials():
                self.write("run.json", run)

    def begun(self, evaluations: int) -> int:
        """How many evaluations the search here was begun with; schedules of agents stay those of that number.

        Args:
            evaluations: How many it is to have now, which is noted.
        """
        if self.asked() is None:
            self.write(BEGUN, {"evaluations": evaluations})
        elif self.asked() != evaluations:
            self.write(ASKED, {"evaluations": evaluations})
        return self._evaluations("run.json" if (self.path / "run.json").is_file() else BEGUN)

    def asked(self) -> int | None:
        """How many evaluations the search here is to have now: as it was begun, or gone on with last. None if that is not known."""
        name = next((name for name in (ASKED, "run.json", BEGUN) if (self.path / name).is_file()), None)
        return None if name is None else self._evaluations(name)

    def _evaluations(self, name: str) -> int:
        """The number of evaluations in a file."""
        noted = self.recorded()["search"] if name == "run.json" else self.read(name)
        with self._naming(name):
            return value_of(int, value_of(Mapping[str, Any], noted, "search").get("evaluations"), "evaluations")

    def recorded(self) -> dict[str, Any]:
        """The content of `run.json`, in which objects are only marked. Raises UserError if there is none, or one of another format."""
        run = self.read("run.json")
        with self._naming("run.json"):
            found = value_of(Mapping[str, Any], run, "run").get("format", 1)
            if found != FORMAT:
                raise UserError(
                    f"{self.path / 'run.json'} is of a run of format {found!r}, and this version reads {FORMAT}; search again in "
                    "another folder"
                )
            record(RunSettings, run)
        return run

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """What is wrong with a file, as UserError that names it."""
        try:
            yield
        except Damaged as error:
            raise UserError(f"{self.path / name} is damaged ({error}); restore it, or search again in another folder") from None
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{self.path / name}: {error}") from error

    def spec(self, trust: Trust = False) -> tuple[EnvironmentSpec, SearchSpec]:
        """The settings that the run was begun with.

        Args:
            trust: True, or the places of code that the caller names, too: what is named in the folder alone is not run.

        Raises:
            UserError: If there are none, one was an object, or one names code that is not trusted.
        """
        run = self.recorded()
        check_trust(run["environment"], trust, self.path / "run.json")
        with self._naming("run.json"):
            return EnvironmentSpec.from_json(run["environment"]), SearchSpec.from_json(run["search"])

    def trials(self) -> Trials:
        """All whole trials; a last line that was cut off by a crash is left out. The file is read again only if it has changed."""
        stamp = self._trials.stamp()
        if self._read is None or self._read[0] != stamp:
            self._read = (stamp, self._trials.read())
        return Trials(self._read[1])

    def is_after_trials(self, name: str) -> bool:
        """Whether a file is there that was written after the last trial."""
        try:
            return (self.path / name).stat().st_mtime_ns >= self._trials.path.stat().st_mtime_ns
        except OSError:
            return False

    def result(self) -> Result | None:
        """The outcome, None if the best student has not been distilled. Raises UserError for a file that cannot be read."""
        if not (self.path / RESULT).is_file():
            return None
        try:
            return Result.from_json(self.read(RESULT))
        except UserError as error:
            raise UserError(f"{self.path / RESULT}: {error}") from None

    def append(self, trial: Trial) -> None:
        """Write a trial so that it outlives a crash right after."""
        self._trials.append(trial)

    def ahead(self, problem: Problem) -> dict[Plan, Evaluation]:
        """What several workers had judged of a problem before its turn, when they were interrupted."""
        ids = (problem.id, problem.ranking.id)
        return {Plan.from_json(a.plan): a.evaluation for a in self._ahead.read() if (a.problem, a.ranking) == ids}

    def append_ahead(self, line: Ahead) -> None:
        """Note a student that was judged before its turn."""
        self._ahead.append(line)

    def nothing_ahead(self) -> None:
        """Forget these: all have had their turn."""
        self._ahead.path.unlink(missing_ok=True)

    def repair(self) -> None:
        """Cut torn last lines off, so that the next ones start on lines of their own."""
        self._trials.repair()
        self._ahead.repair()

    def write(self, name: str, data: Any, indent: int | None = 2) -> None:
        """Write a JSON file whole or not at all."""
        write_json(self.path / name, data, indent)

    def read(self, name: str) -> Any:
        """A JSON file of the run. Raises UserError that says what is missing."""
        path = self.path / name
        if not path.is_file():
            inside = ", ".join(sorted(file.parent.name for file in self.path.glob(f"*/{name}")))
            hint = f"give one of its folders that have one: {inside}" if inside else (
                "is it the folder of a run (the --out of compress-env search)?"
            )  # fmt: skip
            raise UserError(f"{self.path} has no {name}; {hint}")
        return read_json(path)


def flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting in a `run.json` by its name: those of the problem, of the environment and of the search."""
    environment = dict(run["environment"])
    return environment.pop("problem") | environment | run["search"]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the block, no other process works in `folder`, which exists. Raises UserError if one already does."""
    file = folder / ".lock"
    if file.is_symlink():
        raise UserError(f"{file} is a link, which is not written through; delete it")
    lock = FileLock(file)
    with writing(file):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is working in {folder}; wait until it ends, or choose another --out"
            ) from None
    try:
        remove_parts(folder)
        write_json(folder / HOLDER, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        lock.release()
