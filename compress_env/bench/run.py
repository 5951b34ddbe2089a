"""`bench run`: tasks x agents x seeds at an equal number of evaluations, on all cores, skipping what is finished."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from compress_env.bench.scenarios import TASKS
from compress_env.cli.options import name_values
from compress_env.errors import UserError
from compress_env.files import JsonLines
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import Trial
from compress_env.teachers import TEACHERS

Table = dict[str, dict[str, list["Run"]]]
"""Task -> agent -> runs by seed; all agents of a task have the same seeds."""


@dataclass(frozen=True)
class Run:
    """A finished search. Lists have an entry an evaluation.

    best: highest reward so far of a student within the budget (-1 before there is one). accuracy: that student's, on validation
    images. seconds: since the beginning, on one core. mean_last: mean reward of the last tenth, what the agent proposes in the
    end. final: reward of the policy without noise, None for agents without one. front: `(share of the first resource, accuracy)`
    of students that no other is as cheap and as good as. plan: of the best student, as JSON, "" if no student met the budget.
    """

    task: str
    agent: str
    seed: int
    evaluations: int
    best: tuple[float, ...]
    accuracy: tuple[float, ...]
    seconds: tuple[float, ...]
    mean_last: float
    final: float | None
    front: tuple[tuple[float, float], ...]
    plan: str


def summarise(task: str, agent: str, seed: int, evaluations: int, trials: Sequence[Trial], final: Trial | None) -> Run:
    """A `Run` from its trials; a search that ends early (uniform has one student) keeps its best to the end."""
    best, accuracy, plan = [-1.0], [0.0], ""
    for trial in trials:
        better = trial.outcome.feasible and not trial.outcome.failed and trial.reward > best[-1]
        best.append(trial.reward if better else best[-1])
        accuracy.append(trial.outcome.accuracy if better else accuracy[-1])
        plan = trial.plan.to_json() if better else plan
    rest = evaluations - len(trials)
    seconds = np.cumsum([t.seconds for t in trials]).tolist()
    name = next(iter(trials[0].outcome.budget))
    points = sorted((t.outcome.usage[name] / t.outcome.teacher_usage[name], t.outcome.accuracy) for t in trials)
    front = [p for i, p in enumerate(points) if all(p[1] > q[1] for q in points[:i])]
    return Run(
        task, agent, seed, evaluations,
        tuple(best[1:] + best[-1:] * rest), tuple(accuracy[1:] + accuracy[-1:] * rest),
        tuple(round(s, 3) for s in seconds + seconds[-1:] * rest),
        float(np.mean([t.reward for t in trials[-max(1, evaluations // 10) :]])), final.reward if final else None,
        tuple(front), plan,
    )  # fmt: skip


def read(path: Path) -> list[Run]:
    """The finished runs of a results file; a torn last line is left out. Raises UserError for a file of another version."""
    return JsonLines(path, Run).read()


def load(path: Path) -> Table:
    """The runs of a results file, for each task with the seeds that all of its agents have. Raises UserError if there are none."""
    runs = read(path)
    if not runs:
        raise UserError(f"there are no results in {path}; make them with `compress-env bench run --out {path.parent}`")
    table: Table = {}
    for task in dict.fromkeys(r.task for r in runs):
        own: dict[str, dict[int, Run]] = {}
        for r in runs:
            if r.task == task:
                own.setdefault(r.agent, {})[r.seed] = r
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in own.values())))
        if seeds:
            table[task] = {agent: [by_seed[s] for s in seeds] for agent, by_seed in own.items()}
    return table


def one(task: str, agent: str, seed: int, evaluations: int, data: str | None, folder: Path) -> Run:
    """A search of its own, which goes on from its folder if it was interrupted. Called in worker processes."""
    name, settings = with_options(agent)
    found = search(
        environment(task, data), name, evaluations, seed, RunFolder(folder), progress=False, settings=settings
    )
    if found.interrupted:
        raise KeyboardInterrupt
    return summarise(task, agent, seed, evaluations, found.trials, found.final_policy)


def with_options(agent: str) -> tuple[str, dict[str, Any]]:
    """`"ddpg imagined=0 tau=0.02"` as the agent and its settings."""
    name, *given = shlex.split(agent) or [""]
    return name, name_values(None, None, tuple(given))


def _end_with(parent: int) -> None:
    """End this worker soon after `parent`, which may be killed: what it would go on to write, the next run writes too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def environment(task: str, data: str | None) -> gym.Env:
    """The environment of a task; `data` is for those on CIFAR-10."""
    entry = TASKS.get(task)
    teacher = entry.arguments["teacher"]
    needs_data = teacher in TEACHERS.names() and TEACHERS.get(teacher).data == "cifar10"
    return gym.make(entry.env_id, **dict(entry.arguments) | ({"data": data} if data and needs_data else {}))


def run(
    tasks: Sequence[str],
    agents: Sequence[str],
    seeds: Sequence[int],
    evaluations: int,
    out: Path,
    *,
    data: str | None = None,
    jobs: int | None = None,
) -> list[Run]:
    """All combinations that `out/results.jsonl` does not have yet, in parallel, each appended when it is done; returns all.

    agents: names, with settings of their own after them if need be (`"ddpg imagined=0"`).
    data: for tasks on CIFAR-10, for example `imagefolder:DIR`; torchvision's own if None. jobs: processes, the cores if None.
    Raises UserError for unknown names before anything is run.
    """
    for name in tasks:
        TASKS.get(name)
    for agent in agents:
        find_agent(*with_options(agent))
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        return _run(
            tasks, agents, seeds, evaluations, out / "results.jsonl", data, jobs or len(os.sched_getaffinity(0))
        )


def _run(tasks, agents, seeds, evaluations: int, path: Path, data: str | None, jobs: int) -> list[Run]:
    results = JsonLines(path, Run)
    done = results.read()
    other = {r.evaluations for r in done} - {evaluations}
    if other:
        raise UserError(
            f"{path} was begun with {other.pop()} evaluations a run, not {evaluations}; choose another --out"
        )
    known = {(r.task, r.agent, r.seed) for r in done}
    todo = [(t, a, s) for s in seeds for t in tasks for a in agents if (t, a, s) not in known]
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, which compete for the same cores otherwise
    try:
        with (
            ProcessPoolExecutor(
                min(jobs, max(1, len(todo))),
                mp_context=get_context("spawn"),
                initializer=_end_with,
                initargs=(os.getpid(),),
            ) as pool,
            tqdm(total=len(todo), unit="search", desc="bench") as bar,
        ):
            futures = {
                pool.submit(one, t, a, s, evaluations, data, path.parent / "runs" / t / a / str(s)): (t, a, s)
                for t, a, s in todo
            }
            try:
                for future in as_completed(futures):
                    result = future.result()
                    results.append(result)
                    done.append(result)
                    bar.update()
                    bar.set_postfix_str("{} {} {}".format(*futures[future]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return done
