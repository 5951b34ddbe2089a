"""The runs below a folder, by what their files say: no lock is taken and no code of theirs is run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from compress_env.errors import UserError
from compress_env.files import process_runs
from compress_env.records import Damaged, value_of
from compress_env.report.formats import DASH, columns, decimal
from compress_env.search.store import ASKED, HOLDER, RESULT, RunFolder
from compress_env.search.trial import best_trial

RUN, TRIALS, DONE = "run.json", "trials.jsonl", "search.json"
HEAD = ("run", "agent", "teacher", "budget", "evaluations", "best metric", "reward", "state", "age")
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


@dataclass(frozen=True)
class RunState:
    """A run.

    Attributes:
        path: Its folder.
        agent: The agent, None if it is not known.
        teacher: The teacher, likewise.
        budget: Limits by resource, as they were typed.
        done: Evaluations that were recorded.
        asked: How many it is to have, as it was begun or gone on with last; None if it is not known.
        best_metric: The task's main metric of the best student so far, on validation examples, without full distillation.
        best_reward: Its reward.
        state: "running", "interrupted", "complete" (the search is), "finished" (the best student of all that was recorded is
            distilled) or "damaged".
        reason: Where it runs, or what is damaged; else "".
        age: Seconds since something was written.
    """

    path: str
    agent: str | None
    teacher: str | None
    budget: Mapping[str, Any]
    done: int
    asked: int | None
    best_metric: float | None
    best_reward: float | None
    state: str
    reason: str
    age: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def find_runs(folders: Iterable[str | Path], progress: bool = False) -> list[RunState]:
    """The runs in folders and below, by path.

    Args:
        folders: Where to look; links are not followed.
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: If there is no such folder.
    """
    found = list(dict.fromkeys(place for folder in folders for place in _places(Path(folder))))
    return [state_of(place) for place in tqdm(found, desc="runs", disable=not progress, delay=2, leave=False)]


def state_of(place: Path) -> RunState:
    """The state of the run in a folder."""
    folder, now = RunFolder(place), time.time()
    known: dict[str, Any] = dict(agent=None, teacher=None, budget={}, done=0, asked=None, best_metric=None, best_reward=None)
    age = max(0.0, now - max(_changed(place / name) for name in (RUN, TRIALS, RESULT, DONE)))
    try:
        if (place / RUN).is_file():
            run = folder.recorded()
            environment, search = run["environment"], run["search"]
            problem = value_of(Mapping[str, Any], environment.get("problem"), "problem")
            known |= {"agent": str(search.get("agent")), "teacher": str(problem.get("teacher"))}
            known["budget"] = value_of(Mapping[str, Any], environment.get("budget"), "budget")
        known["asked"] = folder.asked()
        trials = folder.trials()
        known["done"] = len(trials)
        if best := best_trial(trials):
            known |= {"best_metric": best.evaluation.metric, "best_reward": best.reward}
        state, reason = _state(folder, known["done"], known["asked"])
    except (UserError, Damaged) as error:
        state, reason = "damaged", " ".join(str(error).split())
    return RunState(str(place), **known, state=state, reason=reason, age=round(age, 1))


def text(runs: Iterable[RunState]) -> str:
    """A table for the terminal, a line a run."""
    return columns([HEAD, *map(_row, runs)])


def _row(run: RunState) -> tuple[str, ...]:
    budget = " ".join(f"{name}={limit}" for name, limit in run.budget.items())
    of = f"{run.done} of {run.asked}" if run.asked else f"{run.done}"
    state = f"{run.state}: {run.reason}" if run.reason else run.state
    cells = (run.agent, run.teacher, budget, of, decimal(run.best_metric), decimal(run.best_reward), state, _age(run.age))
    return tuple("".join(c if c.isprintable() else "?" for c in cell or DASH) for cell in (run.path, *cells))


def _age(seconds: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), (1.0, "s"))
    return f"{seconds / size:.0f} {unit}"


def _state(folder: RunFolder, done: int, asked: int | None) -> tuple[str, str]:
    """The state, and where it runs."""
    if (folder.path / HOLDER).is_file():
        holder = value_of(Mapping[str, Any], folder.read(HOLDER), HOLDER)
        host, process = holder.get("host"), holder.get("process")
        if host != socket.gethostname():
            return "running", f"on {host}, if that still does"
        if isinstance(process, int) and process_runs(process):
            return "running", f"process {process}"
    result = folder.result()
    if result and done in (0, result.evaluations):  # a run that was pulled from a hub has no trials
        return "finished", ""
    over = asked is not None and done >= asked or _ended(folder)
    return ("complete" if over else "interrupted"), ""


def _ended(folder: RunFolder) -> bool:
    """Whether a search came to its end, be it with fewer evaluations than it may have; one that was gone on with has to again."""
    once = (folder.path / DONE).is_file()
    return once and (folder.is_after_trials(DONE) or not (folder.path / ASKED).is_file())


def _places(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give one that has runs in it or below, such as the --out of a search")
    for place, folders, names in os.walk(root):
        folders.sort()
        if RUN in names or TRIALS in names:
            yield Path(place)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
