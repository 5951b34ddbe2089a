"""A curve: one search and one distilled student at each of several budgets, beside the teacher and the uniform students."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress_env.errors import UserError
from compress_env.files import make_folder, read_json, write_json
from compress_env.finishing import Compressed, finish
from compress_env.objective import Objective
from compress_env.progress import say
from compress_env.records import Damaged, value_of
from compress_env.report.curve import DATA, PAGE, CurveRow, CurveTable, write_curve
from compress_env.resources.budget import Limit, parse_budget
from compress_env.search.estimate import Estimate, estimate
from compress_env.search.reopened import objective_in
from compress_env.search.store import RunFolder, alone_in
from compress_env.searching import check_search, run_search
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec

UNIFORM = "uniform"
"""The agent whose students stand beside the others: no blocks removed, all widths by the same share."""


@dataclass(frozen=True)
class Point:
    """One of the budgets of a curve.

    Attributes:
        budget: All limits, as users write them.
        resource: Name of the resource whose limit differs.
        given: That limit, as it was given.
        limit: It, read.
    """

    budget: Mapping[str, Any]
    resource: str
    given: str
    limit: Limit

    @property
    def label(self) -> str:
        """How it is written on the command line."""
        return f"{self.resource}={self.given}"

    @property
    def folder(self) -> str:
        """The name of its run folder, the same however the limit is written."""
        value = f"{100 * self.limit.value:.10g}%" if self.limit.share else f"{self.limit.value:.12g}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', self.resource)}-{value}"


@dataclass(frozen=True, eq=False)
class Curve:
    """Students at several budgets.

    Attributes:
        folder: The folder of the curve; it holds a run folder for each student, `curve.json`, `curve.md`, `curve.svg` and
            `report.html`.
        table: Their numbers; `table.text()` is a Markdown table, and `table.to_json()` what `curve.json` has.
        runs: The outcome of each, in the order of `table.rows`.
    """

    folder: Path
    table: CurveTable
    runs: tuple[Compressed, ...]

    def report(self) -> Path:
        """The path of the HTML page."""
        return self.folder / PAGE

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def budgets_of(budget: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The budgets that a list of limits with commas stands for: `{"macs": "25%,50%", "params": "60%"}` is two.

    Args:
        budget: By resource, a limit, or a text with several.

    Raises:
        UserError: If several resources have several limits.
    """
    listed = {name: value.split(",") for name, value in budget.items() if isinstance(value, str) and "," in value}
    if len(listed) != 1:
        raise UserError(
            f"a curve is along one resource, and {' and '.join(listed) or 'none'} have several limits; give only one of them several"
        )
    ((name, values),) = listed.items()
    return [{**budget, name: value.strip()} for value in values]


def points_of(budgets: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points of a curve, in the order in which they were given.

    Args:
        budgets: At least two, on the same resources, which differ in the limit on one of them.

    Raises:
        UserError: If they are not.
    """
    example = 'give for example [{"macs": "25%"}, {"macs": "50%"}]'
    if isinstance(budgets, str | Mapping) or not isinstance(budgets, Sequence) or not all(isinstance(b, Mapping) for b in budgets):
        raise UserError(f"budgets have to be a list of budgets, got {budgets!r}; {example}")
    if len(budgets) < 2:
        raise UserError(f"a curve takes two budgets at least, and {len(budgets)} was given; {example}, or a single budget instead")
    parsed = [parse_budget(budget) for budget in budgets]
    for given, found in zip(budgets, parsed):
        if found.keys() != parsed[0].keys():
            raise UserError(f"the budgets of a curve are on the same resources, and {dict(budgets[0])!r} and {dict(given)!r} are not")
        for name, (low, high) in found.items():
            if low != high:
                raise UserError(f"budgets: {name}: a range is no point of a curve, got {dict(given)!r}; give one limit for each point")
    several = [name for name in parsed[0] if len({found[name] for found in parsed}) > 1]
    if len(several) > 1:
        raise UserError(f"a curve is along one resource, and the limits on {' and '.join(several)} differ; let only one of them do so")
    name = several[0] if several else next(iter(parsed[0]))
    key = list(budgets[0])[list(parsed[0]).index(name)]
    keys = [key if key in b else list(b)[list(found).index(name)] for b, found in zip(budgets, parsed)]
    points = [Point(dict(b), name, str(b[k]), found[name][0]) for b, k, found in zip(budgets, keys, parsed)]
    seen: dict[str, Point] = {}
    for point in points:
        if point.folder in seen:
            raise UserError(f"budgets: {point.label} is {seen[point.folder].label} once more; give each once")
        seen[point.folder] = point
    return points


def check_curve(budget: Mapping[str, Any] | None, max_accuracy_drop: float | None, finetune_epochs: int) -> None:
    """Look whether several budgets go together with what else was asked for. Raises UserError if not."""
    if budget is not None:
        raise UserError(f"several budgets take the place of one, and budget={dict(budget)!r} was given, too; leave one of both out")
    if max_accuracy_drop is not None:
        raise UserError(
            "max_accuracy_drop looks for one budget, the smallest that holds, and several were given; give it one range, such as "
            "macs=10%..100%, or leave it out"
        )
    if not finetune_epochs:
        raise UserError("a curve compares students that were distilled; give finetune_epochs of at least 1")


@dataclass(frozen=True)
class _Run:
    """A run of a curve: at a point, with the chosen agent or the uniform one."""

    point: Point
    environment: EnvironmentSpec
    search: SearchSpec
    folder: RunFolder


class _Plan:
    """All runs of a curve, and what they share.

    Args:
        environment: The problem and the reward.
        points: The budgets.
        search: The agent, and how long it looks at each budget.
        out: The folder of the curve.
        finetuning: How each student is distilled.
        resume: Whether to go on with what is in the folder.
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: For a folder that cannot be used, before the teacher is loaded.
    """

    def __init__(
        self, environment: EnvironmentSpec, points: Sequence[Point], search: SearchSpec, out: Path, finetuning: FinetuneSpec,
        resume: bool, progress: bool,
    ):  # fmt: skip
        self.out, self.points, self.finetuning, self.resume, self.progress = out, points, finetuning, resume, progress
        beside = SearchSpec(UNIFORM, evaluations=1, seed=search.seed)
        self.runs = [
            _Run(point, replace(environment, budget=point.budget), own, RunFolder(out / f"{point.folder}{end}"))
            for point in points
            for own, end in ((search, ""), *([(beside, f"-{UNIFORM}")] if search.agent != UNIFORM else []))
        ]
        check_search(search)
        self._admit()

    def _admit(self) -> None:
        """Look whether the curve may be written into its folder."""
        if RunFolder(self.out).trials():
            raise UserError(f"{self.out} is the folder of one search; give another --out for a curve")
        if (self.out / DATA).is_file():
            if not self.resume:
                raise UserError(f"{self.out} has a curve of an earlier command; add --resume to go on, or choose another --out")
            if left := [name for name in self._begun() if name not in self.names]:
                raise UserError(f"cannot resume {self.out}: it has the budget of {left[0]}, too; give all of them, and further ones")
        for run in self.runs:
            run.folder.admit(run.environment, run.search, self.resume)
            if (count := len(run.folder.trials())) > run.search.evaluations:
                raise UserError(
                    f"{run.folder.path} has {count} evaluations already, and each budget of a curve has equally many; give "
                    f"--evaluations {count} or more"
                )

    def _begun(self) -> list[str]:
        """The names of all runs that the curve in the folder is to have."""
        try:
            return list(value_of(tuple[str, ...], read_json(self.out / DATA)["runs"], "runs"))
        except (Damaged, LookupError, TypeError):
            raise UserError(f"{self.out / DATA} is damaged; delete it, and it is made again from the run folders") from None

    @property
    def names(self) -> list[str]:
        """The names of all run folders."""
        return [run.folder.path.name for run in self.runs]

    def objectives(self) -> list[Objective]:
        """An objective for each run; what is measured for one of them is there for all."""
        first = self.runs[0].environment
        begun = next((run.folder for run in self.runs if self.resume and (run.folder.path / "problem.json").is_file()), None)
        whole = objective_in(begun, first, self.progress) if begun else Objective(first, progress=self.progress)
        return [whole.at(run.environment.budget) for run in self.runs]

    def estimate(self, objective: Objective) -> Estimate:
        """What the whole curve will take, those students aside that are there."""
        left = sum(run.search.evaluations - len(run.folder.trials()) for run in self.runs)
        count = sum(run.folder.result() is None for run in self.runs)
        found = estimate(objective, left, self.finetuning)
        low, high = found.distillation
        return replace(found, epochs=count * found.epochs, distillation=(count * low, count * high))

    def said(self, found: Estimate) -> str:
        """The estimate as a line."""
        return f"{len(self.points)} budgets, {len(self.runs)} students to distil; {found.text()}"


def dry_run(
    environment: EnvironmentSpec, budgets: Sequence[Mapping[str, Any]], search: SearchSpec, out: str | Path, finetuning: FinetuneSpec,
    *, resume: bool = False, progress: bool = True,
) -> str:  # fmt: skip
    """What a curve would take on this machine, as a line; nothing is written but caches. Arguments and errors as of `run_curve`."""
    plan = _Plan(environment, points_of(budgets), search, Path(out), finetuning, resume, progress)
    return plan.said(plan.estimate(plan.objectives()[0]))


def run_curve(
    environment: EnvironmentSpec, budgets: Sequence[Mapping[str, Any]], search: SearchSpec, out: str | Path | None,
    finetuning: FinetuneSpec, *, resume: bool = False, command: str | None = None, progress: bool = True,
) -> Curve:  # fmt: skip
    """Search at each budget, distil the best student of each and the uniform one, and put them beside each other.

    The teacher is traced, its channels ranked, its sensitivities and latencies measured once for all. Each search is the one that
    there would be without the others, with the same evaluations and seed.

    Args:
        environment: The problem and the reward; its budget is not looked at.
        budgets: As for `points_of`.
        search: The agent, and how long it looks at each budget.
        out: The folder of the curve; a new one in the system's temporary folder if None.
        finetuning: How each student is distilled.
        resume: Whether to go on with what is in `out`; further budgets may be given then.
        command: The command line that asked for it, for the reports.
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: Before any long work, for anything that cannot be used.
        KeyboardInterrupt: On Ctrl-C, after everything found so far is in the folder.
    """
    points = points_of(budgets)
    place = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-"))
    plan = _Plan(environment, points, search, place, finetuning, resume, progress)
    objectives = plan.objectives()
    make_folder(place)
    with alone_in(place):
        if not (place / DATA).is_file():
            write_json(place / DATA, {"runs": plan.names})
        say(plan.said(plan.estimate(objectives[0])), progress)
        done: list[tuple[Point, Compressed]] = []
        for run, objective in zip(plan.runs, objectives):
            say(f"{run.point.label}, {run.search.agent}: {run.folder.path}", progress)
            run_search(
                run.environment, run.search, run.folder.path, resume=resume, command=command, progress=progress, objective=objective
            )
            done.append((run.point, _finished(run, finetuning, objective, progress)))
            table = _table(environment, done)
            write_curve(place, table, plan.names)
    return Curve(place, table, tuple(found for _, found in _sorted(done)))


def _finished(run: _Run, finetuning: FinetuneSpec, objective: Objective, progress: bool) -> Compressed:
    further = {name: value for name, value in vars(finetuning).items() if name != "epochs"}
    return finish(run.folder, finetuning.epochs, objective=objective, progress=progress, **further)


def _sorted(done: Sequence[tuple[Point, Compressed]]) -> list[tuple[Point, Compressed]]:
    """By rising budget; the order at one budget stays."""
    return sorted(done, key=lambda each: each[1].result.budget[each[0].resource])


def _table(environment: EnvironmentSpec, done: Sequence[tuple[Point, Compressed]]) -> CurveTable:
    rows = tuple(CurveRow.of(point.given, found.folder.name, found.result) for point, found in _sorted(done))
    point, found = done[0][0], done[0][1].result
    teacher = environment.problem.teacher
    name = teacher if isinstance(teacher, str) else type(teacher).__name__
    return CurveTable(name, point.resource, found.metric, found.runtime, found.resources, rows)
