"""Students of ours and of torch-pruning at the same MACs, all of them fine-tuned alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from benchmarks.peers.pruners import PRUNERS, STEPS, shrunk
from benchmarks.trained import metric, recipe_of, train
from compress_env.contexts import one_thread
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import Diverged
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.files import JsonLines
from compress_env.problem import Problem
from compress_env.registry import unknown
from compress_env.resources.budget import parse_limit
from compress_env.resources.macs import Macs
from compress_env.resources.params import Params
from compress_env.search.store import RunFolder
from compress_env.search.trial import best_trial
from compress_env.spec import EvaluatorSettings
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk

PREFIX = "torch-pruning "


@dataclass(frozen=True)
class PeerResult:
    """A student after fine-tuning with one seed, or why there is none.

    Attributes:
        student: Its name.
        seed: Of the fine-tuning.
        failed: Why there is none, or "".
        how: The pruning ratio or the plan.
        macs: Share of the teacher's.
        params: Likewise.
        validation_start: As in `Trained`, and so are the others.
    """

    student: str
    seed: int
    failed: str = ""
    how: str = ""
    macs: float = 0.0
    params: float = 0.0
    validation_start: float = 0.0
    test_start: float = 0.0
    validation: float = 0.0
    test: float = 0.0
    best_epoch: int = 0


@dataclass(frozen=True, eq=False)
class Contestant:
    """A way to a student.

    Attributes:
        name: Its name.
        make: Gives the student right after the surgery, and how it was made; it may raise if torch-pruning cannot prune the network.
    """

    name: str
    make: Callable[[], tuple[nn.Module, str]]


def of_library(problem: Problem, name: str, limit: float) -> Contestant:
    """The student of a pruner within a number of MACs."""

    def make() -> tuple[nn.Module, str]:
        with one_thread():
            model, ratio = shrunk(problem, PRUNERS[name], limit)
        return model, f"ratio {ratio:.4f}"

    return Contestant(PREFIX + name, make)


def of_plan(problem: Problem, name: str, plan: Plan) -> Contestant:
    """The student of a plan as it is before fine-tuning: with the teacher's weights, refitted as a search sees it."""
    return Contestant(name, lambda: (Evaluator(problem, EvaluatorSettings()).prepared(plan), plan.to_json()))


def uniform_plan(problem: Problem, limit: float) -> Plan:
    """The plan of action 0 at every step, within a number of MACs."""
    walk = Walk(problem, {"macs": limit})
    while not walk.done:
        walk.step(0.0, 0.0)
    return problem.graph.canonical(walk.removed, walk.widths)


def of_run(problem: Problem, path: Path, limit: float) -> Contestant:
    """The best student of a run folder. Raises UserError if it is none of this teacher's, or above the limit."""
    folder = RunFolder(path)
    environment, search = folder.spec(trust=True)  # nothing of it is run
    for name in ("teacher", "weights"):
        theirs, mine = getattr(environment.problem, name), getattr(problem.spec, name)
        if theirs != mine:
            raise UserError(f"{path} is a run with {name} {theirs!r}, not {mine!r}; give it the same one")
    best = best_trial(folder.trials())
    if best is None:
        raise UserError(f"{path} has no student that meets its budget yet; search further with --resume")
    used = best.evaluation.usage["macs"]
    if used > limit * (1 + 1e-9):
        raise UserError(
            f"the student of {path} has {used:,.0f} MACs, more than {limit:,.0f}; search with --budget macs={limit:.0f}"
        )
    return of_plan(problem, f"{search.agent} {search.seed} ({best.plan.key[:6]})", best.plan)


def limit_of(budget: Mapping[str, Any], teacher: float) -> float:
    """MACs from `{"macs": limit}`. Raises UserError for other resources."""
    if set(budget) != {"macs"}:
        raise UserError("students are compared at equal MACs; give one --budget macs=LIMIT, for example macs=0.5")
    return parse_limit(budget["macs"], Macs()).absolute(teacher)


def contestants(problem: Problem, limit: float, methods: Sequence[str], runs: Sequence[Path]) -> list[Contestant]:
    """Pruners by name, the uniform student, and the best students of run folders. Raises UserError for one that cannot take part."""
    for name in methods:
        if name not in PRUNERS:
            raise UserError(unknown("pruner", name, list(PRUNERS)))
    found = [of_run(problem, path, limit) for path in runs]
    ours = [of_plan(problem, "uniform", uniform_plan(problem, limit)), *{c.name: c for c in found}.values()]
    return [*ours, *(of_library(problem, name, limit) for name in methods)]


def compare(
    problem: Problem, contestants: Sequence[Contestant], limit: float, epochs: int, seeds: int, out: Path,
    lr: float | None = None, progress: bool = True,
) -> tuple[dict[str, Any], list[PeerResult]]:  # fmt: skip
    """Fine-tune every contestant with every seed; rows are appended to `out/peers.jsonl`, those that are there are not made again.

    Args:
        problem: It has the teacher and the data.
        contestants: Who takes part.
        limit: MACs of all of them.
        epochs: Of the fine-tuning.
        seeds: How many fine-tunings of each.
        out: The folder.
        lr: The peak rate; that of full distillation if None.
        progress: Whether to show how far it is.

    Returns:
        Settings and rows.

    Raises:
        UserError: If the file was made with other settings.
    """
    recipe, data = recipe_of(problem, epochs, lr), problem.data
    settings = {
        "teacher": problem.teacher.name, "data": data.name, "training_images": len(data.train), "limit": limit,
        "share": limit / problem.cost_model.teacher["macs"], "epochs": epochs, "loss": problem.task.loss, "steps": STEPS,
        "recipe": recipe.to_json(), "teacher_validation": metric(problem, problem.whole, data.validation),
        "teacher_test": metric(problem, problem.whole, data.test),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    results = JsonLines(out / "peers.jsonl", PeerResult, header=True)
    rows = results.begin(settings)
    done = {(r.student, r.seed) for r in rows}
    hopeless = {r.student for r in rows if r.failed}
    with tqdm(total=len(contestants) * seeds, desc="peers", unit="student", disable=not progress) as bar:
        for contestant in contestants:
            todo = [s for s in range(seeds) if (contestant.name, s) not in done and contestant.name not in hopeless]
            bar.set_postfix_str(contestant.name)
            bar.update(seeds - len(todo))
            for row in _results(problem, contestant, recipe, todo, out, progress):
                results.append(row)
                rows.append(row)
                bar.update()
    return settings, rows


def _results(
    problem: Problem, contestant: Contestant, recipe: Recipe, seeds: Sequence[int], out: Path, progress: bool
) -> Iterator[PeerResult]:
    if not seeds:
        return
    try:
        whole, how = contestant.make()
    except Exception as error:  # noqa: BLE001 - torch-pruning raises almost anything for networks it does not know
        if not contestant.name.startswith(PREFIX):
            raise
        yield PeerResult(contestant.name, seeds[0], _reason(error))
        return
    example, teacher = problem.data.calibration(1).to(next(whole.parameters()).device), problem.cost_model.teacher
    macs, params = Macs().count(whole, example) / teacher["macs"], Params().count(whole, example) / teacher["params"]
    for seed in seeds:
        checkpoint = out / f"{contestant.name.replace(' ', '-')}-{seed}.checkpoint"
        try:
            result = train(problem, copy.deepcopy(whole), recipe, seed, checkpoint, progress)
        except Diverged as error:
            checkpoint.unlink(missing_ok=True)
            yield PeerResult(contestant.name, seed, _reason(error), how, macs, params)
            return
        yield PeerResult(contestant.name, seed, "", how, macs, params, **asdict(result))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
