"""Speed before and after, on this machine: `python -m benchmarks.compare_speed`.

An earlier commit and this one take turns, each in a process of its own, so that a machine that slows down slows both. All seconds are
CPU seconds of one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TEACHERS = ("resnet8-digits", "resnet20-cifar10")
AGENTS = ("random", "ddpg")
WALKS, STUDENTS = 60, 30


@dataclass(frozen=True)
class Side:
    """One of two versions of the same functions, for one teacher.

    Attributes:
        env: The environment.
        graph: What can be removed and shrunk.
        macs: The teacher's.
        walk: Begins a walk within so many MACs.
        build: Builds the student of a plan.
        count: Counts the usage of a student.
        evaluate: Judges a fresh student, of which the usage is known.
    """

    env: Any
    graph: Any
    macs: float
    walk: Callable[[float], Any]
    build: Callable[[Any], Any]
    count: Callable[[Any, Any], Any]
    evaluate: Callable[[Any, Any, Any], Any]


def before(teacher: str, data: Any) -> Side:
    """The functions of the earlier commit."""
    env: Any
    from compress_env.envs.episode import Episode
    from compress_env.envs.layer_removal import LayerRemovalEnv

    env = LayerRemovalEnv(teacher=teacher, data=data, device="cpu")
    return Side(
        env, env.graph, env.meter.teacher["macs"], lambda macs: Episode(env.problem, {"macs": macs}, hard=True),
        env.student, env.meter.count,
        lambda student, plan, _: env.evaluator(student, plan),
    )  # fmt: skip


def after(teacher: str, data: Any) -> Side:
    """The functions of this commit."""
    from compress_env.envs.layer_removal import LayerRemovalEnv
    from compress_env.resources.base import Candidate

    env = LayerRemovalEnv(teacher=teacher, data=data, device="cpu")
    objective = env.objective
    problem = objective.problem
    return Side(
        env, problem.graph, problem.cost_model.teacher["macs"], lambda macs: objective.begin({"macs": macs}), problem.student,
        problem.cost_model.count, lambda student, plan, usage: objective.evaluator(plan, Candidate(plan, student, usage)),
    )  # fmt: skip


def timed(function: Callable, *arguments: Any) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    began = thread_time()
    result = function(*arguments)
    return thread_time() - began, result


def walking(side: Side, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Seconds of a step without and with the observation, each walk at a fresh budget and with nothing remembered."""
    steps = side.env.steps if hasattr(side.env, "steps") else side.env.objective.steps

    def play(step: Callable, actions: list) -> None:
        for action in actions:
            step(action)

    for _ in range(WALKS):
        share, actions = rng.uniform(0.3, 0.75), rng.uniform(-1, 1, (steps - 1, 2)).tolist()
        side.graph.forget()
        walk = side.walk(share * side.macs)
        yield "a decision", timed(play, lambda action, step=walk.step: step(*action), actions)[0] / len(actions)
        side.graph.forget()
        side.env.reset(options={"budget": {"macs": share}})
        yield "a decision with observation", timed(play, side.env.step, actions)[0] / len(actions)


def judging(side: Side, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Seconds of building, counting and judging a random student."""
    graph = side.graph
    names = list(graph.blocks if hasattr(graph, "blocks") else graph.units)
    for _ in range(STUDENTS):
        removed = frozenset(name for name in names if rng.random() < 0.3)
        plan = graph.canonical(removed, rng.integers(graph.floor, graph.full + 1))
        seconds, student = timed(side.build, plan)
        yield "building a student", seconds
        seconds, usage = timed(side.count, student, plan)
        yield "counting it", seconds
        yield "judging it", timed(side.evaluate, student, plan, usage)[0]


def searching(side: Side, agent: str, evaluations: int) -> float:
    """Seconds of a whole search."""
    from compress_env.search.run import find_agent, search

    find_agent(agent)  # its libraries are loaded
    return timed(lambda: search(side.env, agent, evaluations, 0, progress=False))[0]


def measure(make: Callable[[str, Any], Side], evaluations: int) -> dict[str, float]:
    """Medians of every measurement of one version. Images for the larger teacher are noise: seconds do not depend on them."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    for teacher in TEACHERS:
        noise = tuple(
            torch.utils.data.TensorDataset(
                torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.arange(n) % 10
            )
            for n in (2000, 500)
        )
        side, rng = make(teacher, None if teacher == TEACHERS[0] else noise), np.random.default_rng(0)
        for name, seconds in (*walking(side, rng), *judging(side, rng)):
            found.setdefault(f"{teacher}: {name}", []).append(seconds)
        if teacher == TEACHERS[0]:
            for agent in AGENTS:
                name = f"{teacher}: a search of {evaluations} students with {agent}"
                found[name] = [searching(make(teacher, None), agent, evaluations)]
    return {name: median(values) for name, values in found.items()}


def side_by_side(old: Path, rounds: int, evaluations: int) -> list[tuple[str, float, float]]:
    """Name, seconds before and seconds after of each measurement: medians over rounds, in which the two versions take turns."""
    found: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    for i in range(rounds):
        for code, tree in (("before", old), ("after", ROOT)) if i % 2 == 0 else (("after", ROOT), ("before", old)):
            click.echo(f"round {i + 1} of {rounds}, {code} ...", err=True)
            call = [sys.executable, __file__, "--code", code, "--evaluations", str(evaluations)]
            environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(call, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                found[code].setdefault(name, []).append(seconds)
    return [(name, median(found["before"][name]), median(found["after"][name])) for name in found["after"]]


@click.command(help=__doc__)
@click.option("--commit", help="The earlier commit; the last one before the problem became the centre if absent.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often each version is measured.")
@click.option("--evaluations", type=click.IntRange(1), default=100, show_default=True, help="Students of each search.")
@click.option(
    "--most", type=click.FloatRange(0, min_open=True), metavar="RATIO", help="Exit code 1 if a measurement's ratio is above it."
)
@click.option("--code", type=click.Choice(["before", "after"]), hidden=True, help="Measure the code that is imported.")
def main(commit: str | None, rounds: int, evaluations: int, most: float | None, code: str | None) -> None:
    if code:
        click.echo(json.dumps(measure(before if code == "before" else after, evaluations)))
        return
    from benchmarks.golden import COMMIT, earlier

    with earlier(commit or COMMIT) as tree:
        rows = side_by_side(tree, rounds, evaluations)
    click.echo(f"{'CPU seconds of one thread':64} {'before':>11} {'after':>11} {'ratio':>6}")
    for name, old, new in rows:
        click.echo(f"{name:64} {old:11.6f} {new:11.6f} {new / old:6.2f}")
    if most and any(new / old > most for _, old, new in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
