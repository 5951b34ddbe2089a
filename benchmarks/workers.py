"""How many students a minute one and several workers judge, and what becomes of a search whose workers are lost.

`python -m benchmarks.workers --out FILE.jsonl`; with `--nodes`, on two nodes of a Ray cluster that it starts on this machine, of
which one is killed in the middle.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.errors import UserError
from compress_env.files import JsonLines
from compress_env.objective import Objective
from compress_env.search.run import search
from compress_env.search.trial import Trial
from compress_env.spec import EnvironmentSpec


@dataclass(frozen=True)
class Row:
    """A search.

    Attributes:
        agent: Its name.
        where: "this process", "processes" or "Ray".
        workers: How many students were judged at once.
        event: What happened in the middle, or "".
        evaluations: Students judged.
        start: Seconds until the first was told.
        rate: Students a minute from then on.
        same: Whether the trials equal those of a search in one process, as they have to for agents that do not learn.
        warned: What was said of it, once each.
    """

    agent: str
    where: str
    workers: int
    event: str
    evaluations: int
    start: float
    rate: float
    same: bool
    warned: tuple[str, ...]


class Clock:
    """Notes when each trial is told, and has something happen in the middle.

    Args:
        evaluations: How many trials there will be.
        happens: What happens.
    """

    def __init__(self, evaluations: int, happens: Callable[[], object]):
        self.told: list[float] = []
        self._middle, self._happens = evaluations // 2, happens

    def on_trial(self, trial: Trial) -> None:  # noqa: ARG002
        """Called after each trial."""
        self.told.append(time.perf_counter())
        if len(self.told) == self._middle:
            self._happens()


def timed(
    spec: EnvironmentSpec, agent: str, evaluations: int, alone: Sequence[Trial], where: str, workers: int, cluster: str | None = None,
    event: str = "", happens: Callable[[], object] = lambda: None,
) -> tuple[Row, list[Trial]]:  # fmt: skip
    """A search, in the middle of which `event` happens."""
    clock = Clock(evaluations, happens)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = search(
            Objective(spec), agent, evaluations, 0, progress=False, workers=workers, cluster=cluster, callbacks=[clock]
        )
    warned = tuple(dict.fromkeys(str(w.message) for w in said if "worker" in str(w.message)))
    first, last = clock.told[0], clock.told[-1]
    rate = 60 * (len(clock.told) - 1) / (last - first)
    same = not alone or all(a.same(b) for a, b in zip(found.trials, alone, strict=True))
    row = Row(agent, where, workers, event, evaluations, round(first - began, 1), round(rate, 1), same, warned)
    return row, found.trials


def kill_a_process() -> None:
    """Kill the first worker process of this one, as the system does where memory is short."""
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
                return


@contextmanager
def two_nodes() -> Iterator[tuple[str, Callable[[], object]]]:
    """A Ray cluster of two nodes with a core each on this machine: its address, and a function that kills the second one."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        raise UserError('nodes need Ray; install it with: pip install "compress-env[ray]"') from None
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        yield cluster.address, lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()


@click.command(cls=Command)
@click.option("--agent", default="random", show_default=True, help="One that learns finds other students with several workers.")
@click.option("--evaluations", type=click.IntRange(4), default=60, show_default=True, help="Students of each search.")
@click.option("--workers", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True, help="May be repeated.")
@click.option("--steps", type=click.IntRange(0), default=100, show_default=True, help="Of the training of each student on the digits.")
@click.option("--nodes", is_flag=True, help="Also on two nodes of a Ray cluster, of which one is killed.")
@click.option("--out", type=options.Place(path_type=Path), required=True, metavar="FILE.jsonl", help="Results, added to its own.")
def main(agent: str, evaluations: int, workers: tuple[int, ...], steps: int, nodes: bool, out: Path) -> None:
    """Searches with one worker and with several, one of which is killed.

    \b
    python -m benchmarks.workers --nodes --out workers.jsonl
    python -m benchmarks.workers --agent sac --evaluations 101 --out workers.jsonl
    """
    spec = EnvironmentSpec.of_keywords(budget={"macs": 0.4}, actions="absolute", evaluator={"distill_steps": steps})
    results = JsonLines(out, Row)

    def show(cells: Sequence[str]) -> None:
        click.echo(f"| {' | '.join(cells)} |")

    def done(row: Row) -> None:
        results.append(row)
        said, same = "; ".join(row.warned) or "-", "yes" if row.same else "no"
        show([row.agent, row.where, str(row.workers), row.event or "-", f"{row.start:.0f} s", f"{row.rate:.0f}", same, said])

    head = ("agent", "where", "workers", "in the middle", "first after", "students a minute", "same trials", "said")
    show(head)
    show(["---"] * len(head))
    row, alone = timed(spec, agent, evaluations, (), "this process", 1)
    done(row)
    for n in (n for n in workers if n > 1):
        done(timed(spec, agent, evaluations, alone, "processes", n)[0])
        done(timed(spec, agent, evaluations, alone, "processes", n, event="a worker is killed", happens=kill_a_process)[0])
    if nodes:
        with two_nodes() as (address, kill):
            done(timed(spec, agent, evaluations, alone, "Ray", 2, address)[0])
            done(timed(spec, agent, evaluations, alone, "Ray", 2, address, "a node is killed", kill)[0])


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.workers")
