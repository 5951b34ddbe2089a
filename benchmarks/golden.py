"""The golden record: searches by an earlier commit and by this one, on this machine, compared bit for bit.

    python benchmarks/golden.py record --out after.jsonl            # this checkout
    python benchmarks/golden.py compare --out golden                # both commits, then the comparison; exit code 1 if they differ

The earlier commit is checked out into a temporary worktree. `before` reads what it calls by other names, and applies the changes
that are meant, each listed with its reason (`MEANT`), so that everything else has to be equal to the last bit. `after` takes absolute
actions, which the earlier commit had alone, and agents that look at no observation, for that has other entries now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import click

from compress_env.cli import options

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "12db54c"
"""The last one before the problem became the centre."""
AGENTS = ("random", "uniform", "greedy", "evolution", "tpe", "cma-es")
TEACHERS = ("resnet8-digits", "mobilenetv2-digits")
BUDGETS = ({"macs": 0.5}, {"macs": 0.3, "params": 0.4})
SCHEDULES = ("joint", "removal", "shrink")
EVALUATIONS, SEEDS = 30, (0, 1)
MEANT = {
    "kl": "The KL divergence is stored in nats, not as exp(-KL): the reward is computed from it without a detour, which "
    "changes its last digits.",
    "images": "A search sees half of the validation images at most; the rest is for the choice among its best students.",
}
"""Changes that are meant. `before` applies them to the earlier commit."""

Case = tuple[str, dict, str, str, int]


def cases() -> Iterator[Case]:
    """Teacher, budget, schedule, agent and seed of every search."""
    for teacher in TEACHERS:
        for seed in SEEDS:
            for budget in BUDGETS:
                yield from ((teacher, budget, "two-step", agent, seed) for agent in AGENTS)
            yield from ((teacher, {"macs": 0.6}, schedule, "random", seed) for schedule in SCHEDULES)


def before(case: Case) -> list[dict]:
    """The trials of a search by the earlier commit, with the changes that are meant."""
    from compress_env import rewards
    from compress_env.datasets.data import Data
    from compress_env.distill import evaluator
    from compress_env.envs.layer_removal import LayerRemovalEnv
    from compress_env.search import search

    def call(self, student, plan):
        logits = self.logits(student, plan)
        right = evaluator.accuracy(logits, self.validation.labels)
        return evaluator.Score(right, evaluator.divergence(logits, self.teacher_logits))

    def half(self, images):
        most = len(self.validation) // 2
        return self.validation.take(slice(most if images is None else min(images, most)))

    Data.validation_subset = half
    evaluator.Evaluator.__call__ = call  # "likeness" then holds the KL
    rewards.prospect = lambda kl, size: size**rewards.CAPACITY / (size**rewards.CAPACITY + kl)
    teacher, budget, schedule, agent, seed = case
    env = LayerRemovalEnv(teacher=teacher, budget=budget, schedule=schedule)
    found = search(env, agent, EVALUATIONS, seed, progress=False)
    return [
        {"plan": json.loads(t.plan.to_json()), "usage": dict(t.outcome.usage), "metric": t.outcome.accuracy,
         "kl": t.outcome.likeness, "reward": t.reward}
        for t in found.trials
    ]  # fmt: skip


def after(case: Case) -> list[dict]:
    """The trials of a search by this commit."""
    from compress_env.objective import Objective
    from compress_env.search import search
    from compress_env.spec import EnvironmentSpec

    teacher, budget, schedule, agent, seed = case
    settings = {"teacher": teacher, "budget": budget, "schedule": schedule, "actions": "absolute", "shaping": False}
    objective = Objective(EnvironmentSpec.of_keywords(**settings))
    found = search(objective, agent, EVALUATIONS, seed, progress=False)
    return [
        {"plan": json.loads(t.plan.to_json()), "usage": dict(t.evaluation.usage), "metric": t.evaluation.metric,
         "kl": t.evaluation.kl, "reward": t.reward}
        for t in found.trials
    ]  # fmt: skip


def play(job: tuple[str, Case]) -> str:
    """A line of the record. Called in worker processes."""
    which, case = job
    warnings.simplefilter("ignore")
    trials = (before if which == "before" else after)(case)
    return json.dumps({"case": case, "trials": trials})


def record_all(which: str, out: Path, jobs: int) -> None:
    """Every search, appended as it ends; those that `out` has are not made again."""
    done = [json.loads(line)["case"] for line in out.read_text().splitlines()] if out.exists() else []
    todo = [(which, case) for case in cases() if json.loads(json.dumps(case)) not in done]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, click.progressbar(
        pool.map(play, todo), length=len(todo), label=f"searches, {which}"
    ) as lines, out.open("a") as file:
        for line in lines:
            file.write(line + "\n")
            file.flush()


def read(path: Path) -> dict[str, list[dict]]:
    """Trials by case."""
    rows = map(json.loads, path.read_text().splitlines())
    return {json.dumps(row["case"], sort_keys=True): row["trials"] for row in rows}


def differences(old: dict[str, list[dict]], new: dict[str, list[dict]]) -> list[str]:
    """A line for each search whose trials are not equal, with the first that differs."""
    lines = [f"{case}: only in one record" for case in sorted(set(old) ^ set(new))]
    for case in sorted(set(old) & set(new)):
        if old[case] == new[case]:
            continue
        i = next((i for i, (a, b) in enumerate(zip(old[case], new[case])) if a != b), -1)
        a, b = old[case][i], new[case][i]
        what = ", ".join(f"{k} {a[k]!r} -> {b[k]!r}" for k in a if a[k] != b.get(k))
        lines.append(f"{case}: {len(old[case])} and {len(new[case])} trials; trial {i}: {what}")
    return lines


@contextmanager
def earlier(commit: str) -> Iterator[Path]:
    """Within the block, a folder with an earlier commit, from which Python can import."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        try:
            (tree / "compress_env" / "agents").symlink_to("../agents")
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


@click.group(help=__doc__)
def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


@main.command()
@click.option("--code", type=click.Choice(["before", "after"]), default="after", show_default=True)
@click.option("--out", type=options.Place(path_type=Path), required=True, help="JSON lines.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
def record(code: str, out: Path, jobs: int) -> None:
    """Search with the code that is imported; `before` is for the earlier commit."""
    record_all(code, out, jobs)


@main.command()
@click.option("--commit", default=COMMIT, show_default=True)
@click.option("--out", type=options.Place(path_type=Path, file_okay=False), required=True, help="Folder of both records.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
def compare(commit: str, out: Path, jobs: int) -> None:
    """Make both records, unless OUT has them, and compare."""
    out.mkdir(parents=True, exist_ok=True)
    with earlier(commit) as tree:
        call = [sys.executable, __file__, "record", "--code", "before", "--out", str((out / "before.jsonl").resolve())]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        subprocess.run([*call, "--jobs", str(jobs)], cwd=tree, env=environment, check=True)
    record_all("after", out / "after.jsonl", jobs)
    for name, why in MEANT.items():
        click.echo(f"meant: {name}: {why}")
    old, new = read(out / "before.jsonl"), read(out / "after.jsonl")
    lines = differences(old, new)
    for line in lines:
        click.echo(line)
    click.echo(f"{len(old)} searches, {sum(map(len, old.values()))} trials, {len(lines)} searches differ")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
