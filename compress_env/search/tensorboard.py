"""Scalars of a search for TensorBoard; the package `tensorboard` is only needed where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress_env.search.callbacks import Callback, shares
from compress_env.search.trial import Trial, best_trial

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""In a run folder; its folders are what TensorBoard calls runs."""
TRIALS = "trials"
"""The run of the search; agents have others beside it."""
LAST = "search/reward"
"""Is written last, so that a step that has it is complete."""


class TensorBoard(Callback):
    """Writes scalars of each trial, whose number is the step.

    `search/reward`, the task's main metric (`search/accuracy`), `usage/NAME` (the share of the teacher's usage, for each limited
    resource), `search/feasible` (0 or 1), `best/reward` and the best student's metric (`best/accuracy`), once there is one, and
    `search/front` (the number of students that no other beats in the metric and all of these shares).

    Steps of recorded trials that are not there, because a search was killed or did not write any, are written, and no step is twice.

    Args:
        folder: Of the events.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: SummaryWriter
        self._best: Trial | None = None
        self._front: list[tuple[float, ...]] = []

    def on_start(self, trials: Sequence[Trial]) -> None:
        """Write what is missing of recorded trials."""
        self._writer, first = writer_from(self._folder, LAST, len(trials))
        for trial in trials:
            self._take(trial, write=trial.index >= first)
        self._writer.flush()

    def on_trial(self, trial: Trial) -> None:
        """Write its scalars."""
        self._take(trial, write=True)
        self._writer.flush()

    def on_end(self) -> None:
        """Close the file."""
        self._writer.close()

    def _take(self, trial: Trial, write: bool) -> None:
        evaluation, used = trial.evaluation, shares(trial)
        if not evaluation.failed:
            self._front = with_point(self._front, (evaluation.metric, *(-share for share in used.values())))
        self._best = best_trial([*([self._best] if self._best else []), trial])
        if not write:
            return
        name = next(iter(evaluation.metrics))
        scalars = {f"usage/{resource}": share for resource, share in used.items()}
        scalars |= {f"search/{name}": evaluation.metric, "search/feasible": float(trial.feasible), "search/front": len(self._front)}
        if self._best:
            scalars |= {"best/reward": self._best.reward, f"best/{name}": self._best.evaluation.metric}
        for tag, value in {**scalars, LAST: trial.reward}.items():
            self._writer.add_scalar(tag, value, trial.index)


def writer_from(folder: Path, tag: str, steps: int) -> tuple[SummaryWriter, int]:
    """A writer of events, and the step that is to be written first.

    Args:
        folder: Where events may be, of an earlier part.
        tag: A scalar that each complete step has.
        steps: How many there may be; others are of a run that was deleted, and hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    first = min(steps, 1 + last_step(folder, tag))
    return SummaryWriter(str(folder), purge_step=first), first


def last_step(folder: Path, *tags: str) -> int:
    """The last step of these scalars, or of any, in a folder of events; -1 if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return -1
    events = EventAccumulator(str(folder), {"scalars": 1}).Reload()
    there = events.Tags()["scalars"]
    return max((int(events.Scalars(tag)[-1].step) for tag in there if tag in tags or not tags), default=-1)


def with_point(front: Sequence[tuple[float, ...]], point: tuple[float, ...]) -> list[tuple[float, ...]]:
    """The points of a front and another, without those that one of them beats: no lower anywhere, and not equal."""
    if any(all(a >= b for a, b in zip(other, point)) for other in front):
        return list(front)
    return [*(other for other in front if not all(a >= b for a, b in zip(point, other))), point]
