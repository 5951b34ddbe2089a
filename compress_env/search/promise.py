"""What is promised of a student that was asked for with a largest drop, and what was distilled to find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compress_env.distill.finetune import loss_name
from compress_env.files import JsonLines
from compress_env.spec import FinetuneSpec
from compress_env.tasks import Task
from compress_env.tasks.paired import Drop

ATTEMPTS_FILE = "attempts.jsonl"


@dataclass(frozen=True)
class Attempt:
    """A budget that was tried.

    Attributes:
        budget: The limit, as a share of the teacher's usage.
        low: The bracket before it: from the largest budget that did not hold ...
        high: ... to the smallest that did.
        trial: Index of the trial whose student was distilled; None if no student could be.
        usage: What that uses, as a share of the teacher's.
        drop: How much worse it is, after distillation, on the half of the validation examples that no other choice depends on.
        holds: Whether that is at most what was asked for.
        finetune: How the distillation went: `Finetuned` as JSON, without test examples; none of those was looked at.
        failed: The reason why no student could be distilled, or "".
    """

    budget: float
    low: float
    high: float
    trial: int | None = None
    usage: float | None = None
    drop: Drop | None = None
    holds: bool = False
    finetune: Mapping[str, Any] | None = None
    failed: str = ""


@dataclass(frozen=True)
class Promise:
    """What is promised of a student, and what that is worth. Drops are in points, hundredths of the main metric.

    Attributes:
        max_accuracy_drop: The drop that was asked for, in points.
        resource: What the student is to use as little of as it can.
        usage: What it uses of that, as a share of the teacher's.
        validation: Its drop on the half of the validation examples that neither the search nor the choice of the epoch saw. It was
            chosen by this among the attempts, and it is at most what was asked for.
        bound_holds: Whether the bound is, too: with its confidence, the drop on further examples is not larger.
        attempts: Every budget that was tried, in order.
        test: The drop on test examples, which no choice depended on; None until they were looked at.
    """

    max_accuracy_drop: float
    resource: str
    usage: float
    validation: Drop
    bound_holds: bool
    attempts: tuple[Attempt, ...]
    test: Drop | None = None


def attempts_in(folder: Path) -> list[Attempt]:
    """What was tried in a run folder, in order; nothing where no accuracy was to be guaranteed."""
    return JsonLines(folder / ATTEMPTS_FILE, Attempt, header=True).read()


class AttemptsFile:
    """What was tried, in the run folder: a line a budget, so that nothing is distilled twice.

    Args:
        folder: The run folder.
        max_accuracy_drop: In points.
        evaluations: How many students the search judges.
        finetuning: How students are distilled.
        task: What outputs mean.
    """

    def __init__(self, folder: Path, max_accuracy_drop: float, evaluations: int, finetuning: FinetuneSpec, task: Task):
        self.asked = float(max_accuracy_drop)
        self._file = JsonLines(folder / ATTEMPTS_FILE, Attempt, header=True)
        self._settings = {
            "max_accuracy_drop": self.asked, "evaluations": evaluations, **asdict(replace(finetuning, loss=None)),
            "loss": loss_name(task, finetuning.loss),
        }  # fmt: skip

    def check(self) -> None:
        """Raises UserError if what is there was tried with other settings; the first that differs is named."""
        if self._file.path.is_file():
            self.begin(0)

    def begin(self, searched: int) -> int:
        """Begin the file, if there is none.

        Args:
            searched: How many students the search has judged.

        Returns:
            How many it had when the file was begun; those after it were proposed for the budgets that were tried.
        """
        found = self._file.settings.get("searched", searched)
        self._file.begin(self._settings | {"searched": found})
        return int(found)

    def read(self) -> list[Attempt]:
        """What was tried, in order."""
        return attempts_in(self._file.path.parent)

    def append(self, attempt: Attempt) -> None:
        """Record one so that it outlives a crash right after."""
        self._file.append(attempt)
