"""Students are judged on a Ray cluster: in actors on any of its machines, with a share of a GPU each where the search uses one.

What goes between machines is Ray's own; nothing here listens on a port.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from compress_env.errors import UserError
from compress_env.extras import need
from compress_env.failures import FIRST
from compress_env.objective import Objective
from compress_env.search.executors import Outcome, Task
from compress_env.search.executors.pool import LATE, NoRoom, Pool, WorkerLost
from compress_env.search.executors.worker import Bench, Order

ANSWER = 5.0
"""Seconds in which a cluster has to answer."""
LOOK = 2.0
"""Seconds between looks at whether an actor has begun."""
GPU = 0.25
"""Share of a GPU that each worker has, if the search uses one: small networks do not fill more."""


class OnRay(Pool):
    """Actors of a Ray cluster, started when they are first needed, wherever there is a free core.

    Args:
        objective: What students are judged by.
        workers: How many actors.
        cluster: "auto" for the cluster that this machine belongs to, or its address.

    Raises:
        UserError: If Ray is not installed, or there is no such cluster.
    """

    def __init__(self, objective: Objective, workers: int, cluster: str | None = "auto"):
        ray = _ray()
        self._mine = not ray.is_initialized()
        if self._mine:
            try:
                _answers(cluster or "auto")
                ray.init(address=cluster, log_to_driver=False, logging_level="error")
            except Exception as error:  # noqa: BLE001 - Ray's own, of many kinds
                raise UserError(
                    f"there is no Ray cluster at {cluster!r} that answers ({_line(error)}); start one with `ray start --head`, set "
                    "RAY_AUTH_MODE=token for one that asks for a token, or leave out --cluster"
                ) from None
        gpu = GPU if objective.problem.device.type == "cuda" else 0
        actor = ray.remote(num_cpus=1, num_gpus=gpu, max_restarts=0)(Bench)

        def start(place: int) -> Actor:
            if len(self._workers) >= room():
                raise NoRoom(f"the cluster has {room()} cores, each with a worker")
            return Actor(ray, actor, Order.of(objective, place), objective.spec.timeout, lambda: len(self._workers) > room())

        def room() -> int:
            return int(ray.cluster_resources().get("CPU", 0))

        super().__init__(objective, workers, start)

    def close(self) -> None:
        """End all actors, and leave the cluster."""
        super().close()
        if self._mine:
            _ray().shutdown()


class Actor:
    """An actor that judges.

    Args:
        ray: The package.
        kind: The actor's class.
        order: What it is told.
        timeout: Seconds that an evaluation may take, 0 or None for the usual limit.
        crowded: Whether there are fewer cores than actors, so that one that has not begun may wait for ever.
    """

    def __init__(self, ray: Any, kind: Any, order: bytes, timeout: float | None, crowded: Callable[[], bool]):
        self._ray, self._limit, self._crowded = ray, LATE * (timeout or FIRST), crowded
        self._actor = kind.remote(order)
        self._begun = self._actor.__ray_ready__.remote()

    def judge(self, task: Task) -> Outcome:
        """The student, judged there."""
        errors = self._ray.exceptions
        try:
            while not self._ray.wait([self._begun], timeout=LOOK)[0]:
                if self._crowded():
                    raise WorkerLost("the node that it was to be on is gone")
            found: Outcome = self._ray.get(self._actor.judge.remote(task), timeout=self._limit)
            return found
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.ActorDiedError as error:
            if isinstance(cause := getattr(error, "cause", None), errors.RayTaskError) and isinstance(cause.cause, UserError):
                raise cause.cause from error
            raise WorkerLost(f"its actor died: {_line(error)}") from error
        except errors.GetTimeoutError as error:
            raise WorkerLost(f"no answer for {self._limit:g} s") from error
        except errors.RayError as error:
            raise WorkerLost(_line(error)) from error

    def end(self, idle: bool) -> None:  # noqa: ARG002 - it is killed all the same, which Ray does in good order
        """Stop the actor."""
        if self._ray.is_initialized():
            self._ray.kill(self._actor)


def _answers(address: str) -> None:
    """Raises OSError or ValueError if nothing listens at an address: Ray itself waits for minutes, and then ends the process."""
    if address == "auto":
        return
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if not place.hostname or not place.port:
        raise ValueError("an address is host:port or ray://host:port")
    socket.create_connection((place.hostname, place.port), timeout=ANSWER).close()


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _ray() -> Any:
    need("a cluster of workers", "ray")
    import ray

    return ray
