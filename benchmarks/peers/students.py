"""Ways to students within a limit, ours and those of peers, and the students that they led to, which are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.peers import fastnas
from benchmarks.peers.limits import Bound, Times, count
from benchmarks.peers.pruners import PRUNERS, Pruner, repeated, shrunk
from benchmarks.trained import metric
from compress_env.contexts import one_thread
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.files import JsonLines
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.registry import unknown
from compress_env.search.choice import Finalists
from compress_env.search.store import RunFolder
from compress_env.search.trial import best_trial
from compress_env.spec import EnvironmentSpec
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk

OURS, PEER, WIDTHS = "ours", "peer", "peer's widths"
"""Whose a student is: ours; a peer's as that leaves it; or one with its widths, and with our choice of channels and our refit."""
REFITTED, FASTNAS_FILE = "+refit", "fastnas.safetensors"


@dataclass(frozen=True)
class Numbers:
    """Those of a student right after the surgery, or why there is none.

    Attributes:
        student: Its name.
        side: `OURS`, `PEER` or `WIDTHS`.
        failed: Why there is none, or "".
        how: The pruning ratio or the plan.
        macs: Share of the teacher's.
        params: Likewise.
        milliseconds: Of a pass for one input on one CPU thread, by runtime.
        latency: Share of the teacher's, measured beside it, by runtime.
        validation_start: Main metric on all validation images.
        test_start: Likewise on test images.
    """

    student: str
    side: str
    failed: str = ""
    how: str = ""
    macs: float = 0.0
    params: float = 0.0
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)
    validation_start: float = 0.0
    test_start: float = 0.0


@dataclass(frozen=True)
class Student(Numbers):
    """A student right after the surgery.

    Attributes:
        pruned: What torch-pruning took away, as it writes it.
    """

    pruned: tuple[tuple[str, bool, tuple[int, ...]], ...] = ()


Made = tuple[nn.Module, str, Sequence]
"""A student, how it was made, and what torch-pruning took away."""


@dataclass(frozen=True, eq=False)
class Contestant:
    """A way to a student.

    Attributes:
        name: Its name.
        side: As in `Student`.
        make: Gives the student right after the surgery, how it was made, and what torch-pruning took away; it may raise if a peer
            cannot prune the network.
        again: Gives one that it made before.
    """

    name: str
    side: str
    make: Callable[[], Made]
    again: Callable[[Student], nn.Module]


@dataclass(frozen=True, eq=False)
class Library:
    """A package that prunes.

    Attributes:
        name: Its name.
        make: As in `Contestant`.
        again: Likewise.
    """

    name: str
    make: Callable[[], Made]
    again: Callable[[Student], nn.Module]


class Makers:
    """Makes students of one problem within a limit.

    Args:
        bound: The limit.
        folder: Where a peer keeps what takes it minutes.
    """

    def __init__(self, bound: Bound, folder: Path):
        self.bound, self.problem, self._folder = bound, bound.problem, folder
        spec = EnvironmentSpec(bound.problem.spec, budget=bound.budget)
        self.objective = Objective(spec, problem=bound.problem, progress=True)
        self._left: dict[str, Made] = {}

    def peer(self, name: str) -> Contestant:
        """The student of a pruner as it leaves it, or with `REFITTED` behind the name one with the widths of that.

        Raises UserError if there is no such pruner, or it is not installed.
        """
        pruner, refitted = name.removesuffix(REFITTED), name.endswith(REFITTED)
        library = self._library(pruner)

        def leaves() -> Made:
            if pruner not in self._left:
                with one_thread():
                    self._left[pruner] = library.make()
            return self._left[pruner]

        def again(student: Student) -> nn.Module:
            model = library.again(student)
            self._left[pruner] = model, student.how, student.pruned
            return model

        if refitted:
            return self.plan(f"{pruner}'s widths, refitted", lambda: widths_of(self.problem, leaves()[0]), WIDTHS)
        return Contestant(f"{library.name} {pruner}", PEER, leaves, again)

    def _library(self, pruner: str) -> Library:
        if pruner in PRUNERS:
            return Library("torch-pruning", partial(self._pruned, PRUNERS[pruner]), lambda s: repeated(self.problem, s.pruned))
        if pruner == fastnas.NAME:
            fastnas.require()
            return Library("ModelOpt", self._fastnas, self._fastnas_again)
        raise UserError(unknown("pruner", pruner, [*PRUNERS, fastnas.NAME]))

    def _pruned(self, pruner: Pruner) -> Made:
        model, ratio, history = shrunk(pruner, self.bound)
        return model, f"ratio {ratio:.4f}", history

    def _fastnas(self) -> Made:
        model = fastnas.shrunk(self.bound, self._evaluator.validation, self._folder)
        plan = widths_of(self.problem, model)
        state = model.state_dict()
        save_file({name: state[name].contiguous() for name in self.problem.student(plan).state_dict()}, self._folder / FASTNAS_FILE)
        return model, plan.to_json(), ()

    def _fastnas_again(self, student: Student) -> nn.Module:
        model = self.problem.student(Plan.from_json(student.how))
        model.load_state_dict(load_file(self._folder / FASTNAS_FILE))
        return model

    def plan(self, name: str, plan: Callable[[], Plan], side: str = OURS) -> Contestant:
        """The student of a plan as it is before fine-tuning: with the teacher's weights, refitted as a search sees it."""

        def make() -> Made:
            found = plan()
            return self._evaluator.prepared(found), found.to_json(), ()

        return Contestant(name, side, make, lambda student: self._evaluator.prepared(Plan.from_json(student.how)))

    @property
    def _evaluator(self) -> Evaluator:
        evaluator = self.objective.evaluator
        assert isinstance(evaluator, Evaluator)
        return evaluator

    def uniform(self) -> Plan:
        """The plan that keeps every block and the same share of all groups, changed as little as a measured limit asks for."""
        walk = Walk(self.problem, self.bound.by_resource)
        while not walk.done:
            walk.step(1.0, 0.0)
        return self.problem.finish(walk.removed, walk.widths, self.bound.by_resource).plan

    def allocation(self) -> Plan:
        """The best of a handful of allocations with more and with fewer blocks removed, as the agent of that name finds it."""
        limits = self.bound.by_resource
        plans = self.objective.reference(limits).alternatives
        judged = [self.objective.judge_plan(p.removed, p.widths, limits) for p in plans]
        return max(judged, key=lambda each: each.reward).plan

    def run(self, path: Path) -> Contestant:
        """The best student of a run folder. Raises UserError if it is none of this problem's, or above the limit."""
        folder, resource = RunFolder(path), self.bound.resource
        environment, search = folder.spec(trust=True)  # nothing of it is run
        for name in ("teacher", "weights", *(("runtime", "latency_batch", "latency_threads") if self.bound.measured else ())):
            theirs, mine = getattr(environment.problem, name), getattr(self.problem.spec, name)
            if theirs != mine:
                raise UserError(f"{path} is a run with {name} {theirs!r}, not {mine!r}; give it the same one")
        trials = folder.trials()
        best = best_trial(trials)
        if best is None:
            raise UserError(f"{path} has no student that meets its budget yet; search further with --resume")
        usage, whole = best.evaluation.usage, best.evaluation.teacher_usage
        if resource not in usage:
            raise UserError(f"{path} is a run without a limit on {resource}; search with --budget {resource}={self.bound.share:.1%}")
        if (used := usage[resource] / whole[resource]) > self.bound.share * (1 + 1e-9):
            raise UserError(
                f"the student of {path} uses {used:.1%} of the teacher's {resource}, more than {self.bound.share:.1%}; search with "
                f"--budget {resource}={self.bound.share:.1%}"
            )

        def chosen() -> Plan:  # as a search does it: among its ten best, by all validation images
            return Finalists(self.objective, trials).ranked()[0].trial.plan

        return self.plan(f"{search.agent}, seed {search.seed} ({path.name})", chosen)


def widths_of(problem: Problem, model: nn.Module) -> Plan:
    """The plan with the widths of a network that a peer made of the teacher. Raises UserError for groups of another kind."""
    graph, widths = problem.graph, {}
    for name, group in graph.groups.items():
        before, after = (getattr(m.get_submodule(name), "weight", None) for m in (problem.teacher.module, model))
        if not isinstance(before, Tensor) or not isinstance(after, Tensor) or len(before) != group.size:
            raise UserError(f"the group {name!r} is not the outputs of a layer, so that its width cannot be read from another network")
        widths[name] = len(after)
    return graph.canonical(frozenset(), widths)


def students(
    makers: Makers, contestants: Sequence[Contestant], out: Path, progress: bool = True
) -> list[tuple[Student, Callable[[], nn.Module]]]:
    """Every contestant's student, and a function that makes it anew; they are kept in `out/students.jsonl` and not looked for again.

    Args:
        makers: What makes them.
        contestants: Who takes part.
        out: The folder.
        progress: Whether to show how far it is.

    Raises:
        UserError: If the file was made with another limit.
    """
    problem, bound = makers.problem, makers.bound
    file = JsonLines(out / "students.jsonl", Student, header=True)
    settings = {"teacher": problem.teacher.name, "resource": bound.resource, "share": round(bound.share, 4)}
    known = {s.student: s for s in file.begin(settings)}
    times = Times(problem)
    found: list[tuple[Student, Callable[[], nn.Module]]] = []
    for contestant in tqdm(contestants, desc="students", unit="student", disable=not progress):
        if contestant.name not in known:
            known[contestant.name] = _student(problem, contestant, times)
            file.append(known[contestant.name])
        elif contestant.side == PEER and not known[contestant.name].failed:
            contestant.again(known[contestant.name])  # others may have its widths
        own = known[contestant.name]
        found.append((own, partial(contestant.again, own)))
    return found


def _student(problem: Problem, contestant: Contestant, times: Times) -> Student:
    try:
        model, how, pruned = contestant.make()
        macs, params = (count(problem, name, model) / problem.cost_model.teacher[name] for name in ("macs", "params"))
        milliseconds, latency = times(model)
    except Exception as error:  # noqa: BLE001 - torch-pruning raises almost anything for networks it does not know
        if contestant.side == OURS:
            raise
        return Student(contestant.name, contestant.side, reason(error))
    data = problem.data
    start = metric(problem, model, data.validation), metric(problem, model, data.test)
    return Student(contestant.name, contestant.side, "", how, macs, params, milliseconds, latency, *start, tuple(pruned))


def reason(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
