"""The end of a run: its best student, distilled fully, measured, exported and reported."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from compress_env.contexts import one_thread
from compress_env.cycles import check, shares, shrunk, steps
from compress_env.data.dataset import Data, Split
from compress_env.distill import processes
from compress_env.distill.finetune import Finetuned, finetune, loss_function, loss_name, loss_settings
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import predict
from compress_env.errors import DoubtfulTeacher, EveryStudentFailed, UserError
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Evaluator
from compress_env.export import export_all, rebuild_student, save_student, state_bytes
from compress_env.failures import EvaluationFailed, of_the_machine, reason_of
from compress_env.files import remove
from compress_env.objective import Objective
from compress_env.own_code import Trust
from compress_env.records import value_of
from compress_env.resources.latency.cache import device_name
from compress_env.search.choice import Finalist, Finalists
from compress_env.search.metadata import by_class, metadata, uneven
from compress_env.search.promise import Promise, attempts_in
from compress_env.search.recorder import check_problem
from compress_env.search.reopened import kept, objective_of
from compress_env.search.result import FinalPolicy, NetworkResult, ResourceName, Result
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import best_trial, reason_of_none, versions
from compress_env.search.trials import Trials
from compress_env.spec import EnvironmentSpec, FinetuneSpec
from compress_env.surgery.layout import channels_last
from compress_env.surgery.plan import Plan
from compress_env.tasks import load_task
from compress_env.tasks.doubts import trained_on
from compress_env.tasks.paired import drop
from compress_env.walk.rows import network_rows

CHECKPOINT = "finetune-{}.checkpoint"


@dataclass(frozen=True, eq=False)
class Compressed:
    """The outcome of a run.

    Attributes:
        student: In evaluation mode, as good as its best epoch.
        plan: The plan that it was built from.
        evaluation: Its numbers before it was distilled fully, on all validation images; the search saw half of them at most.
        trials: Every evaluation of the search; `trials.to_dataframe()` is a table.
        folder: The run folder.
        distilled: How the full distillation went, and the content of `result.json`; None if it was left for later.
    """

    student: nn.Module
    plan: Plan
    evaluation: Evaluation
    trials: Trials
    folder: Path
    distilled: tuple[Finetuned, Result] | None = None

    @property
    def finetuned(self) -> Finetuned:
        """How the full distillation went. Raises UserError if it was left for later."""
        return self._done()[0]

    @property
    def result(self) -> Result:
        """The content of `result.json`. Raises UserError if there is none yet."""
        return self._done()[1]

    def _done(self) -> tuple[Finetuned, Result]:
        if self.distilled is None:
            raise UserError(f"the student was not distilled (finetune_epochs=0); compress-env finetune --out {self.folder} does that")
        return self.distilled

    def report(self) -> Path:
        """The path of the HTML page."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        from compress_env.report.page import as_html

        return as_html(self.distilled and self.distilled[1], self.trials, self.report())


def check_finetuning(environment: EnvironmentSpec, spec: FinetuneSpec) -> None:
    """Look before a search whether its best student can be distilled so. Raises UserError for a loss that is not there."""
    grows = environment.problem.changes != "compress"
    _check_cycles(grows, spec)
    loss = environment.evaluator.loss if grows and spec.loss is None else spec.loss
    loss_function(load_task(environment.problem.task), loss, spec.temperature, spec.label_weight)


def _check_cycles(grows: bool, spec: FinetuneSpec) -> None:
    if grows and spec.cycles > 1:
        raise UserError("a student that grows has one cycle of distillation; leave --cycles at 1")


def left_for_later(folder: RunFolder, objective: Objective, progress: bool) -> Compressed:
    """The best student of a search as it was judged, and a report. Raises UserError if no student meets the budget."""
    from compress_env.report.page import write_report

    trials = folder.trials()
    write_report(folder.path)
    if best_trial(trials) is None:
        raise UserError(f"{folder.path}: {reason_of_none(trials)}")
    best = Finalists(objective, trials, folder.path).ranked(progress)[0]
    student = _evaluator(objective).prepared(best.trial.plan).cpu()
    return Compressed(student, best.trial.plan, best.evaluation, trials, folder.path)


def finish(
    folder: RunFolder, epochs: int = 30, *, objective: Objective | None = None, progress: bool = True, trust: Trust = False,
    **further: Any,
) -> Compressed:  # fmt: skip
    """Distil the best student of a run folder fully, measure it beside its teacher, and write files and report.

    Every step is recorded when it is done, so that an interruption loses at most an epoch. A student that fails makes place for the
    next best, and a run that is finished is not distilled again.

    Args:
        folder: A run folder with trials.
        epochs: Passes over the training data.
        objective: The run's; made again from its settings if None.
        progress: Whether to show on standard error how far it is.
        trust: As for `objective_of`.
        further: Fields of `FinetuneSpec`: `lr`, `batch_size`, `accumulate`, `cycles`, `examples`, `loss`,
            `temperature`, `label_weight`.

    Raises:
        UserError: If no student meets the budget yet, or none can be distilled.
    """
    spec = FinetuneSpec.of(epochs=epochs, **further)
    folder.recorded()  # which is no run's without
    if attempts_in(folder.path):
        raise UserError(
            f"{folder.path} is of a search with --max-accuracy-drop, which distils students while it looks for the smallest; go on "
            "with the same command and --resume, or search in another folder"
        )
    with alone_in(folder.path):
        trials = folder.trials()
        if best_trial(trials) is None:
            every = all(t.evaluation.failed for t in trials) and trials
            raise UserError(f"{folder.path}: {reason_of_none(trials)}{'' if every else '; search further with --resume'}")
        objective = objective or objective_of(folder, progress, trust=trust)
        check_problem(trials, objective.problem, folder)
        finalists = Finalists(objective, trials, folder.path)
        ending = Ending(folder, objective, spec, progress)
        found = ending.finished(finalists)
        if found is None:
            found = ending.written(finalists, *ending.distilled(finalists))
        ending.close()
        processes.told()
    return found


def finish_along(folder: RunFolder, epochs: int = 30, *, trust: Trust = False, **further: Any) -> None:
    """What the other processes do while the first one does `finish`: they learn along, and write nothing.

    Args:
        folder: The run folder.
        epochs: As for `finish`.
        trust: As for `objective_of`.
        further: As for `finish`.

    Raises:
        UserError: As `finish` does.
    """
    spec = FinetuneSpec.of(epochs=epochs, **further)
    folder.recorded()
    Ending(folder, objective_of(folder, progress=False, trust=trust), spec, progress=False).along()


class Ending:
    """The full distillation of students of a run, and the files of the one that is chosen.

    Args:
        folder: The run folder, in which nobody else works.
        objective: The run's.
        spec: How students are distilled.
        progress: Whether to show on standard error how far it is.

    Attributes:
        made_by: Everything that makes a distillation another one, as plain values.
        seed: Of the run.

    Raises:
        UserError: For a loss that is not there.
    """

    def __init__(self, folder: RunFolder, objective: Objective, spec: FinetuneSpec, progress: bool = True):
        problem = objective.problem
        if objective.grows and spec.loss is None:  # a larger network has nothing to learn from a smaller one
            spec = replace(spec, loss=objective.spec.evaluator.loss)
        loss = (problem.task, spec.loss, spec.temperature, spec.label_weight)
        function, examples = loss_function(*loss), len(problem.data.few(spec.examples).train)
        _check_cycles(objective.grows, spec)
        self._recipes: list[Recipe] = [
            problem.runnable(finetuning_recipe(examples, n, problem.device, spec.lr, spec.batch_size, function, spec.accumulate))
            for n in shares(spec.epochs, spec.cycles)
        ]
        self.made_by: dict[str, Any] = self._recipes[-1].to_json() | {"loss": loss_name(problem.task, spec.loss)}
        self.made_by |= loss_settings(*loss) | ({"epochs": spec.epochs, "cycles": spec.cycles} if spec.cycles > 1 else {})
        self.made_by |= {"examples": spec.examples} if spec.examples else {}
        self._folder, self._objective, self._spec, self._progress = folder, objective, spec, progress
        self._run, self._judge = folder.recorded(), _evaluator(objective)
        self.seed: int = self._run["search"]["seed"]

    def answers(self, network: nn.Module, split: Split) -> Tensor:
        """A network's outputs `(n, ...)` for a split of the data; the network is on the problem's device."""
        with one_thread(), channels_last(network):
            return predict(network, self._objective.problem.data, split, self._judge.at_once)

    def distilled(self, finalists: Finalists, data: Data | None = None) -> tuple[Finalist, fx.GraphModule, Finetuned]:
        """The best of the finalists that can be distilled, distilled.

        Args:
            finalists: Students, of which those that fail are noted.
            data: What to distil and to measure on; the problem's if None.

        Raises:
            EveryStudentFailed: If there is none; the message has the reason of the last one.
            UserError: If the machine is the cause.
        """
        problem, reason = self._objective.problem, ""
        for finalist in finalists.ranked(self._progress):
            best, plan = finalist.trial, finalist.trial.plan
            checkpoint = self._checkpoint(plan)
            try:
                processes.told(plan.to_json())
                return finalist, *self._distilled(plan, data or problem.data)
            except (UserError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - what a network raises is up to its author
                reason = str(error) if isinstance(error, EvaluationFailed) else reason_of(error)
                if of_the_machine(error):
                    raise UserError(
                        f"the fine-tuning of trial {best.index} ended ({reason}); {checkpoint.name} has what was done so far: see to "
                        f"the machine, and go on with {self._further()}"
                    ) from error
                finalists.failed(finalist, f"fine-tuning: {reason}")
                warnings.warn(f"trial {best.index} cannot be fine-tuned ({reason}); the next best takes its place", stacklevel=3)
        raise EveryStudentFailed(f"{self._folder.path}: none of the best students can be fine-tuned ({reason})")

    def along(self) -> None:
        """Train the students that the first process tells of, together with it, until it tells of no more."""
        while plan := processes.told():
            self._distilled(Plan.from_json(plan), self._objective.problem.data)

    def _distilled(self, plan: Plan, data: Data) -> tuple[fx.GraphModule, Finetuned]:
        problem, spec, before = self._objective.problem, self._spec, list[tuple[float, ...]]()
        if spec.cycles > 1:
            check(problem, plan, spec.cycles)
        student: fx.GraphModule | None = None
        learned = data.few(spec.examples)
        for number, (step, recipe) in enumerate(zip(steps(problem, plan, spec.cycles), self._recipes), 1):
            if student is None:
                student = self._judge.prepared(step)
            else:
                student = shrunk(problem, student, step, self._judge.settings.calibration_images)
            done = finetune(
                student, problem.whole, learned, recipe, task=problem.task, loss=spec.loss, temperature=spec.temperature,
                label_weight=spec.label_weight, seed=self.seed, at_once=self._judge.at_once,
                checkpoint=self._checkpoint(plan, number), progress=self._progress,
            )  # fmt: skip
            before.append(done.history)
        assert student is not None
        return student, replace(done, before=tuple(before[:-1]))

    def _further(self) -> str:
        """The command that goes on."""
        command, out = self._run["command"], f"compress-env finetune --out {self._folder.path}"
        return f"{command} --resume" if command and attempts_in(self._folder.path) else out

    def _checkpoint(self, plan: Plan, cycle: int = 1) -> Path:
        of = f"-{cycle}-of-{self._spec.cycles}" if self._spec.cycles > 1 else ""
        return self._folder.path / CHECKPOINT.format(f"{plan.key}-{self._spec.epochs}{of}")

    def finished(self, finalists: Finalists) -> Compressed | None:
        """The outcome that is in the folder, if it is that of these trials and this recipe, and its files are there."""
        trials, folder = finalists.trials, self._folder
        try:
            result = folder.result()
            best = next((t for t in trials if result and t.index == result.best_trial), None)
            if result is None or best is None or result.evaluations != len(trials):
                return None
            done = Finetuned.from_json(result.finetune)
            written = [n for n, difference in result.exports.items() if difference is not None]
            if dict(result.recipe) != self.made_by or not all((folder.path / name).is_file() for name in written):
                return None
            problem = self._objective.problem
            student = rebuild_student(problem.module, problem.graph, folder.path)
        except UserError as error:
            warnings.warn(f"{error}; the student is made again", stacklevel=3)
            return None
        return Compressed(student, best.plan, finalists.known(best), Trials(trials), folder.path, (done, result))

    def written(
        self, finalists: Finalists, finalist: Finalist, student: fx.GraphModule, done: Finetuned, promise: Promise | None = None
    ) -> Compressed:
        """The outcome of a run, with its files.

        Args:
            finalists: Those of the run.
            finalist: The one that was chosen.
            student: It, distilled, on the problem's device.
            done: How that went.
            promise: What is promised of it, before the test images were looked at.
        """
        objective, run, folder, best, plan = self._objective, self._run, self._folder, finalist.trial, finalist.trial.plan
        problem, teacher = objective.problem, objective.problem.whole
        data, task = problem.data, objective.problem.task
        own_answers = self.answers(student, data.test) if promise or uneven(task, data) else None
        student = student.cpu()
        size = save_student(student, plan, folder.path).stat().st_size
        described = metadata(problem, plan, best.limits)
        exports = export_all(student, data.calibration(8), folder.path, metadata=described, progress=self._progress)
        answers = self.answers(teacher, data.test)
        labels = data.test.labels if data.labelled else answers
        teacher_test = task.metrics(answers, labels)[task.metric]
        counts = len(data.validation), len(data.test)
        if doubt := trained_on(task, finalist.evaluation.teacher_metric, teacher_test, *counts):
            warnings.warn(DoubtfulTeacher(f"the teacher {problem.teacher.name!r} has {doubt}"), stacklevel=3)
        if promise and own_answers is not None:
            tested = drop(task, answers, own_answers, labels, self.seed)
            promise, done = replace(promise, test=tested), replace(done, metric_test=tested.student)
        teacher_usage, usage = problem.cost_model.compare(student, plan)
        policy = kept(folder, "search.json", lambda found: value_of(FinalPolicy | None, found.get("final_policy"), "final_policy"))
        resources = {name: ResourceName.of(name) for name in usage}
        measured = any(resource.measured for resource in resources.values())
        result = Result(
            metric=task.metric,
            teacher=NetworkResult(teacher_test, teacher_usage, state_bytes(teacher)),
            student=NetworkResult(done.metric_test, usage, size),
            resources=resources,
            runtime=problem.runtime.label,
            budget=dict(best.limits),
            feasible=all(usage[name] <= limit for name, limit in best.limits.items()),
            evaluations=len(finalists.trials),
            seconds=round(sum(t.seconds for t in finalists.trials), 1),
            agent=run["search"]["agent"],
            seed=self.seed,
            best_trial=best.index,
            final_policy=policy,
            finetune=done.to_json(),
            exports=exports,
            layers=tuple(network_rows(problem, plan.switched, problem.graph.widths(plan))),
            versions=versions(),
            command=run["command"],
            recipe=self.made_by,
            metadata=described,
            by_class=() if own_answers is None else tuple(by_class(task, data, answers, own_answers)),
            promise=promise,
            device=device_name(problem.runtime) if measured else "",
        )
        folder.write("result.json", result.to_json())
        return Compressed(student, plan, finalist.evaluation, Trials(finalists.trials), folder.path, (done, result))

    def close(self) -> None:
        """Write the report, and delete what a distillation goes on from."""
        from compress_env.report.page import write_report

        write_report(self._folder.path)
        for checkpoint in self._folder.path.glob(CHECKPOINT.format("*")):
            remove(checkpoint)


def _evaluator(objective: Objective) -> Evaluator:
    """The objective's evaluator, or one like it where the objective judges by something else than running students."""
    found, spec = objective.evaluator, objective.spec
    return found if isinstance(found, Evaluator) else Evaluator(objective.problem, spec.evaluator, timeout=spec.timeout)
