"""What runs in a worker: the objective of its search, made again from the settings, and checked to be the same."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event

import cloudpickle
import torch

from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.problem import Measured
from compress_env.search.executors import Outcome, Task
from compress_env.search.trial import versions
from compress_env.spec import EnvironmentSpec


@dataclass(frozen=True)
class Order:
    """What a worker needs to know.

    Attributes:
        environment: The settings of the search.
        measured: What was measured beforehand.
        problem: `Problem.id` and the ranking's, which the worker's own have to equal.
        versions: Of the packages that results depend on, likewise.
    """

    environment: EnvironmentSpec
    measured: Measured
    problem: tuple[str, str]
    versions: dict[str, str]

    @classmethod
    def of(cls, objective: Objective, place: int) -> bytes:
        """The order for the worker of a place, pickled with the objects among the settings.

        Where the search uses a GPU and there are several, places take turns.

        Raises:
            UserError: If an object cannot be pickled.
        """
        spec, problem = objective.spec, objective.problem
        device = str(problem.device)
        if problem.device.type == "cuda" and torch.cuda.device_count() > 1:
            device = f"cuda:{place % torch.cuda.device_count()}"
        environment = replace(spec, problem=replace(spec.problem, device=device))
        try:
            return cloudpickle.dumps(cls(environment, problem.measured, (problem.id, problem.ranking.id), versions()))
        except Exception as error:  # noqa: BLE001 - what an object raises is up to its author
            raise UserError(
                f"the workers cannot be given the settings of this search: {type(error).__name__}: {error}; give the teacher, the "
                "data or what else is an object as module:attribute, or set workers=1"
            ) from error


class Bench:
    """Where a worker judges. Made in its process."""

    def __init__(self, order: bytes):
        received: Order = cloudpickle.loads(order)
        if received.versions != (own := versions()):
            other = next(name for name in own if own[name] != received.versions.get(name))
            raise UserError(
                f"a worker has {other} {own[other]} and the search {received.versions.get(other)}; install the same on both"
            )
        self._objective = Objective(received.environment, measured=received.measured)
        problem = self._objective.problem
        if (problem.id, problem.ranking.id) != received.problem:
            raise UserError(
                "a worker has another problem than the search: the teacher's weights, its code, the data or the ranking of channels "
                "differ there; give it the same files"
            )

    def judge(self, task: Task) -> Outcome:
        """The student, judged."""
        judged = self._objective.judge_plan(task.removed, task.widths, task.limits)
        return Outcome(judged.plan, judged.evaluation)


_bench: Bench | UserError | None = None


def begin(order: bytes, parent: int) -> None:
    """Make this process a worker of `parent`: it ends soon after that, and leaves Ctrl-C to it."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    torch.set_num_threads(1)  # of this process alone; workers share the cores
    try:
        _bench = Bench(order)
    except UserError as error:  # which a pool of processes would not pass on
        _bench = error


def judge(task: Task) -> Outcome:
    """The student, judged in this process."""
    if isinstance(_bench, UserError):
        raise _bench
    assert _bench is not None
    return _bench.judge(task)


def end_with(parent: int, stop: Event | threading.Event | None = None) -> None:
    """End this process soon after `parent`, which may be killed, or when told to."""
    event = stop or threading.Event()

    def watch() -> None:
        while os.getppid() == parent and not event.wait(1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
