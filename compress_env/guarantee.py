"""Accuracy guaranteed: the smallest student whose validation metric after distillation is within so many points of the teacher's.

AMC (He et al., ECCV 2018, section 3.2) calls it accuracy-guaranteed compression and looks for it with a reward. Here one search over a
range of budgets is followed by a bisection, in which students are judged after they were distilled, on examples that no choice but its
own depends on.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from compress_env.bisection import PRECISION, Bisection
from compress_env.contexts import apart
from compress_env.data.dataset import Data
from compress_env.distill.finetune import Finetuned
from compress_env.errors import EveryStudentFailed, UserError
from compress_env.export import rebuild_student, save_student
from compress_env.files import make_folder
from compress_env.finishing import Compressed, Ending
from compress_env.objective import Objective
from compress_env.progress import say
from compress_env.report.formats import in_sentence
from compress_env.resources.budget import parse_budget
from compress_env.search.choice import Finalist, Finalists
from compress_env.search.promise import ATTEMPTS_FILE, Attempt, AttemptsFile, Promise
from compress_env.search.recorder import Recorder, check_problem
from compress_env.search.result import ResourceName
from compress_env.search.run import find_agent
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import Trial
from compress_env.spec import EnvironmentSpec, FinetuneSpec
from compress_env.tasks.paired import Drop, drop

FRESH = 20
"""Students that are judged at exactly the budget that is tried, beside those of the search that are within it."""
PROPOSER = "model"
"""The agent that proposes them, the allocation first."""
CANDIDATES = "candidates"
"""The folder of students that hold, until the smallest is known."""


class NothingHolds(UserError):
    """No smaller student is as good as was asked for; the message says what was found, and the run folder has all of it."""


def check(max_accuracy_drop: float, environment: EnvironmentSpec, finetune_epochs: int) -> None:
    """Look before any long work whether a student can be promised so.

    Args:
        max_accuracy_drop: In points.
        environment: The problem and its budget.
        finetune_epochs: Of each distillation.

    Raises:
        UserError: If not.
    """
    asked, number = max_accuracy_drop, isinstance(max_accuracy_drop, int | float) and not isinstance(max_accuracy_drop, bool)
    if not number or not math.isfinite(asked) or not 0 <= asked < 100:
        raise UserError(
            f"max_accuracy_drop has to be a number of points from 0 to below 100, got {asked!r}; 0.5 allows 91.5 % where the teacher "
            "has 92 %"
        )
    if not finetune_epochs:
        raise UserError("max_accuracy_drop is about students that were distilled; give finetune_epochs of at least 1")
    if environment.constraint != "hard":
        raise UserError("max_accuracy_drop looks for the smallest budget that holds, which has to be hard; give constraint='hard'")
    if environment.problem.changes != "compress":
        raise UserError(f"max_accuracy_drop is for networks that shrink; with changes={environment.problem.changes!r} they may grow")
    _ranged(environment)


def _ranged(environment: EnvironmentSpec) -> tuple[str, str]:
    """What the budget calls the one resource that it has a range of, and the resource's name."""
    parsed = parse_budget(environment.budget)
    ranged = [(given, name) for given, (name, (low, high)) in zip(environment.budget, parsed.items()) if low.value < high.value]
    if len(ranged) != 1:
        found = f"ranges of {', '.join(name for _, name in ranged)}" if ranged else f"none but {dict(environment.budget)!r}"
        raise UserError(
            "max_accuracy_drop looks for the smallest student in one resource: the budget needs a range of that, and may have fixed "
            f"limits on others; it has {found}; give for example macs=10%..100%"
        )
    return ranged[0]


def guaranteed(
    folder: RunFolder, objective: Objective, attempts: AttemptsFile, finetuning: FinetuneSpec, progress: bool = True
) -> Compressed:
    """The smallest student that is as good as was asked for, after a search over a range of budgets.

    Args:
        folder: A run folder with trials.
        objective: The run's.
        attempts: What is asked for, and what was tried so far.
        finetuning: How students are distilled.
        progress: Whether to show on standard error how far it is.

    Returns:
        The student with its files; `result.promise` says what is promised.

    Raises:
        NothingHolds: If no smaller student is good enough.
        UserError: If the machine fails.
    """
    with alone_in(folder.path):
        check_problem(folder.trials(), objective.problem, folder)
        return _Guarantee(folder, objective, attempts, finetuning, progress).outcome()


class _Scale:
    """The resource that the budget has a range of, in shares of the teacher's usage."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._given, self.name = _ranged(objective.spec)
        self._teacher = objective.problem.cost_model.teacher[self.name]
        self.label = in_sentence(ResourceName.of(self.name).label)
        self.low, self.high = (min(1.0, limits[self.name] / self._teacher) for limits in objective.budgets(2))

    def bisection(self) -> Bisection:
        """Over the whole range, at whose end the teacher itself holds."""
        return Bisection(self.low, self.high, PRECISION, certain=self.high >= 1)

    def usage(self, trial: Trial) -> float:
        """What a trial's student uses."""
        return trial.evaluation.usage[self.name] / self._teacher

    def at(self, budget: float) -> Objective:
        """The same objective at exactly this budget; what one knows of plans the other knows, too."""
        whole = self._objective
        spec = replace(whole.spec, budget={**whole.spec.budget, self._given: f"{budget!r}" if budget < 1 else "100%"})
        return Objective(spec, problem=whole.problem, evaluator=whole.evaluator, sensitivities=whole.sensitivities)


class _Guarantee:
    """The bisection of a run."""

    def __init__(
        self, folder: RunFolder, objective: Objective, attempts: AttemptsFile, finetuning: FinetuneSpec, progress: bool
    ):
        self.folder, self.objective, self.file, self.progress = folder, objective, attempts, progress
        self.scale, self.ending = _Scale(objective), Ending(folder, objective, finetuning, progress)
        self.searched = attempts.begin(len(folder.trials()))

    @cached_property
    def data(self) -> Data:
        """What candidates are distilled on: no test examples.

        Epochs are chosen on the half of the validation split that the search sees. Drops are measured on the other half, which takes
        the place of the test examples.
        """
        whole = self.objective.problem.data
        seen = whole.validation_subset(None)
        unseen = whole.validation.take(slice(len(seen), None))
        if not len(unseen):
            raise UserError(f"the data set {whole.name!r} has one validation example, and a promise needs two at least")
        return replace(whole, validation=seen, test=unseen.held())

    @cached_property
    def teacher(self) -> Tensor:
        """The teacher's outputs on the unseen half."""
        return self.ending.answers(self.objective.problem.whole, self.data.test)

    def outcome(self) -> Compressed:
        """The files of the smallest student that holds."""
        attempts = list(self._attempts())
        holding = [a for a in attempts if a.holds]
        if not holding:
            self.ending.close()
            raise NothingHolds(self._nothing(attempts))
        best = min(holding, key=lambda a: a.usage or 0.0)
        finalists = Finalists(self.objective, self.folder.trials(), self.folder.path)
        found = self.ending.finished(finalists)
        if found is None or found.result.promise is None:
            found = self._written(finalists, best, tuple(attempts))
        self.ending.close()
        shutil.rmtree(self.folder.path / CANDIDATES, ignore_errors=True)
        return found

    def _attempts(self) -> Iterator[Attempt]:
        """Every budget that is tried, those that were recorded first."""
        bisection, recorded = self.scale.bisection(), iter(self.file.read())
        while (budget := bisection.next) is not None:
            attempt = next(recorded, None)
            if attempt is None:
                attempt = self._attempt(budget, bisection)
                self.file.append(attempt)
            bisection.tell(budget, attempt.usage if attempt.holds else None)
            yield attempt

    def _attempt(self, budget: float, bisection: Bisection) -> Attempt:
        """Distil the best student that is known within a budget, of those larger than what does not hold."""
        bracket = f"{bisection.low:.1%} to {bisection.high:.1%}, at most {bisection.most} more distillations"
        self._say(f"trying {budget:.1%} of the teacher's {self.scale.label} (between {bracket})")
        attempt, pinned = Attempt(budget, bisection.low, bisection.high), self.scale.at(budget)
        self._propose(pinned)
        limits = pinned.budgets(1)[0]
        within = [
            replace(t, limits=limits, reward=self.objective.reward(t.evaluation, limits)[0]) for t in self.folder.trials()
            if t.evaluation.meets(limits) and not t.evaluation.failed and self.scale.usage(t) > bisection.low
        ]  # fmt: skip
        if not within:
            return replace(attempt, failed="no student was found that is smaller than this and larger than what does not hold")
        try:
            best_first = Finalists(self.objective, within, evaluator=self.objective.evaluator)  # judged on what the search saw
            finalist, student, done = self.ending.distilled(best_first, self.data)
        except EveryStudentFailed as error:
            return replace(attempt, failed=str(error))
        found, trial = self._drop(student), finalist.trial
        holds = found.within(self.file.asked)
        if holds:
            make_folder(self._place(trial))
            save_student(student, trial.plan, self._place(trial))
        finetune = {name: value for name, value in done.to_json().items() if name != "metric_test"}
        usage, verdict = self.scale.usage(trial), "holds" if holds else "does not hold"
        self._say(f"{usage:.1%} of the {self.scale.label}, trial {trial.index}, {verdict}: {in_words(found)}")
        return replace(attempt, trial=trial.index, usage=usage, drop=found, holds=holds, finetune=finetune)

    def _propose(self, pinned: Objective) -> None:
        """Have students judged at exactly a budget; their trials follow those of the search, and are not judged again on resuming."""
        trials, limits = self.folder.trials(), pinned.budgets(1)[0]
        recorded = [t for t in trials[self.searched :] if t.limits == limits]
        agent = find_agent(PROPOSER)(pinned, FRESH, self.ending.seed)
        with (
            apart(),
            tqdm(initial=len(trials), total=len(trials) + FRESH - len(recorded), desc="proposals", unit="student",
                 disable=not self.progress) as bar,
        ):  # fmt: skip
            recorder = Recorder(pinned, len(trials) + FRESH, self.ending.seed, self.folder, bar)
            recorder.skip(len(trials))
            for number in range(FRESH):
                for proposal in agent.ask(1):  # type: ignore[union-attr]
                    trial = recorded[number] if number < len(recorded) else recorder.play(proposal)
                    agent.tell([replace(trial, index=number)])  # type: ignore[union-attr]

    def _drop(self, student: nn.Module) -> Drop:
        """How much worse a student is on the unseen half."""
        labels = self.data.test.labels if self.data.labelled else self.teacher
        own = self.ending.answers(student, self.data.test)
        return drop(self.objective.problem.task, self.teacher, own, labels, self.ending.seed)

    def _written(self, finalists: Finalists, best: Attempt, attempts: tuple[Attempt, ...]) -> Compressed:
        """The files of the student that an attempt was about."""
        assert best.drop and best.finetune and best.usage
        limits = self.scale.at(best.budget).budgets(1)[0]
        trial = replace(next(t for t in finalists.trials if t.index == best.trial), limits=limits)
        alone = Finalists(self.objective, [trial], self.folder.path)
        finalist, student, done = self._kept(alone, best) or self.ending.distilled(alone, self.data)
        promise = Promise(
            self.file.asked, self.scale.name, best.usage, best.drop, best.drop.surely_within(self.file.asked), attempts
        )
        return self.ending.written(finalists, finalist, student, done, promise)

    def _kept(self, alone: Finalists, best: Attempt) -> tuple[Finalist, fx.GraphModule, Finetuned] | None:
        """A finalist with its student as it was kept, None if that cannot be read."""
        finalist, problem = alone.ranked()[0], self.objective.problem
        try:
            student = rebuild_student(problem.module, problem.graph, self._place(finalist.trial)).to(problem.device)
        except UserError as error:
            say(f"{error}; the student is distilled again", self.progress)
            return None
        return finalist, student, Finetuned.from_json({**(best.finetune or {}), "metric_test": 0.0})  # measured when it is written

    def _place(self, trial: Trial) -> Path:
        return self.folder.path / CANDIDATES / trial.plan.key

    def _nothing(self, attempts: list[Attempt]) -> str:
        tried = [a for a in attempts if a.drop and a.usage]
        nearest = min(tried, key=lambda a: a.drop.points if a.drop else math.inf, default=None)
        task, scale = self.objective.problem.task, self.scale
        said = f"no student between {scale.low:.1%} and {scale.high:.1%} of the teacher's {scale.label} was found that loses at most "
        said += f"{self.file.asked:g} points of validation {task.metric}; {len(tried)} were distilled"
        if nearest and nearest.drop:
            said += f", the nearest of them, trial {nearest.trial} with {nearest.usage:.1%}, lost {nearest.drop.points:.2f}"
        return (
            f"{said}; {self.folder.path / ATTEMPTS_FILE} has all of them. Allow a larger drop, or more epochs of distillation, in "
            "another folder"
        )

    def _say(self, text: str) -> None:
        say(text, self.progress)


def in_words(found: Drop) -> str:
    """A drop as part of a sentence, with what it is worth."""
    return (
        f"{found.student:.2%} on {found.examples} examples, the teacher {found.teacher:.2%}; a drop of {found.points:.2f} points, at "
        f"most {found.bound:.2f} with {found.confidence:.0%} confidence"
    )


__all__ = ["NothingHolds", "check", "guaranteed"]
