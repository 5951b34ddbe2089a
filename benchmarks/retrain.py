"""`bench retrain`: the winners of `bench run` distilled fully with fresh seeds, and tested on images that no search has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from compress_env.bench.run import Run, environment, load
from compress_env.bench.trained import built, recipe_of, train
from compress_env.distill.evaluator import Evaluator
from compress_env.distill.train import Diverged
from compress_env.errors import UserError
from compress_env.search.store import cut_torn_line
from compress_env.surgery.plan import Plan

FRESH = 1000
"""Added to the seed of a search for that of its winner's distillation, so that it is one that no search has used.

Each search's own winner is distilled once, rather than that of the median seed several times: what differs between searches is more
than what differs between trainings of one student, and an interval over both is what somebody who searches once can expect.
"""


@dataclass(frozen=True)
class Redistilled:
    """A plan of a task distilled for `epochs` with `seed`. Agents that found the same plan with the same seed share it.

    Accuracies in [0, 1] as in `bench.trained.Trained`.
    """

    task: str
    plan: str
    seed: int
    epochs: int
    validation_start: float
    test_start: float
    validation: float
    test: float
    best_epoch: int


def path_of(results: Path) -> Path:
    """Where the distilled winners of a results file are: beside it."""
    return results.with_name(f"{results.stem}-retrained.jsonl")


def read(path: Path) -> list[Redistilled]:
    """What was distilled; a torn last line is left out. Nothing if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Redistilled(**json.loads(line)) for line in lines if line.endswith("\n")]


def retrain(
    results: Path, epochs: int, seeds: int, *, data: str | None = None, tasks: Sequence[str] = (),
    agents: Sequence[str] = (), progress: bool = True,
) -> list[Redistilled]:  # fmt: skip
    """Distil the best student of the first `seeds` searches of each agent on each task, each with a seed of its own.

    They are appended to `path_of(results)`; what is there is not made again. tasks, agents: only these, all if empty.
    data: for tasks on CIFAR-10. Raises UserError if the file was made with another number of epochs, or a name is not in the results.
    """
    table = load(results)
    for kind, given, known in (
        ("task", tasks, list(table)), ("agent", agents, sorted({a for own in table.values() for a in own}))
    ):  # fmt: skip
        if missing := [name for name in given if name not in known]:
            raise UserError(f"there is no {kind} {missing[0]!r} in {results}; it has {', '.join(known)}")
    path = path_of(results)
    cut_torn_line(path)
    known = read(path)
    if other := {r.epochs for r in known} - {epochs}:
        raise UserError(f"{path} was begun with {other.pop()} epochs, not {epochs}; move it away to begin anew")
    done = {(r.task, r.plan, r.seed) for r in known}
    wanted = {
        (task, run.plan, FRESH + run.seed)
        for task in tasks or table
        for agent, runs in table[task].items()
        if not agents or agent in agents
        for run in runs[:seeds]
        if run.plan  # a search that met no budget has no winner
    }
    todo = sorted(wanted - done, key=lambda key: (list(table).index(key[0]), key[2], key[1]))
    with tqdm(
        total=len(wanted), initial=len(wanted & done), desc="winners", unit="student", disable=not progress
    ) as bar:
        for task in dict.fromkeys(key[0] for key in todo):
            bar.set_postfix_str(task)
            env = environment(task, data).unwrapped
            if not isinstance(env.evaluator, Evaluator):
                bar.write(f"{task} is left out: the accuracy of its students is a formula")
                continue
            for _, plan, seed in (key for key in todo if key[0] == task):
                whole = Plan.from_json(plan)
                checkpoint = path.with_name(f"{path.stem}-{task}-{whole.key}-{seed}.checkpoint")
                try:
                    result = train(env, built(env, whole), recipe_of(env, epochs), seed, checkpoint, progress)
                except Diverged as error:
                    checkpoint.unlink(missing_ok=True)
                    bar.write(f"{task}: the student of plan {plan} is left out: {error}")
                    continue
                row = Redistilled(task, plan, seed, epochs, **asdict(result))
                with path.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
                known.append(row)
                bar.update()
    return known


def of_agent(runs: Sequence[Run], found: Mapping[tuple[str, str, int], Redistilled]) -> list[Redistilled]:
    """What the winners of these runs came to, as far as they were distilled; `found` by task, plan and seed."""
    keys = ((r.task, r.plan, FRESH + r.seed) for r in runs)
    return [found[key] for key in keys if key in found]
