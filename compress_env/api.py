"""`compress`: a teacher, data and a budget go in, a distilled student within the budget comes out, with files and a report."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.contexts import one_thread
from compress_env.distill.finetune import Finetuned, finetune, loss_function, loss_name
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import predict
from compress_env.errors import DoubtfulTeacher, EveryStudentFailed, InvalidPlan, UserError
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Evaluator
from compress_env.export import export_all, load_student, save_student, state_bytes
from compress_env.failures import EvaluationFailed, of_the_machine, reason_of
from compress_env.files import make_folder, remove
from compress_env.objective import Objective
from compress_env.own_code import Trust
from compress_env.problem import Measured
from compress_env.progress import announced, say
from compress_env.records import Damaged, value_of
from compress_env.search.choice import Finalists
from compress_env.search.estimate import Estimate, estimate
from compress_env.search.metadata import by_class, metadata, uneven
from compress_env.search.recorder import check_problem
from compress_env.search.result import FinalPolicy, NetworkResult, ResourceName, Result
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import Trial, best_trial, reason_of_none, versions
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec
from compress_env.surgery.layout import channels_last
from compress_env.surgery.plan import Plan
from compress_env.tasks import load_task
from compress_env.tasks.doubts import trained_on
from compress_env.walk.rows import network_rows

T = TypeVar("T")
CHECKPOINT = "finetune-{}.checkpoint"


@dataclass(frozen=True, eq=False)
class Compressed:
    """The outcome of a run.

    Attributes:
        student: In evaluation mode, as good as its best epoch.
        plan: The plan that it was built from.
        evaluation: Its numbers before it was distilled fully, on all validation images; the search saw half of them at most.
        trials: Every evaluation of the search.
        folder: The run folder.
        distilled: How the full distillation went, and the content of `result.json`; None if it was left for later.
    """

    student: nn.Module
    plan: Plan
    evaluation: Evaluation
    trials: list[Trial]
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


def compress(
    teacher: Any = "resnet8-digits",
    data: Any = None,
    budget: Mapping[str, Any] | None = None,
    agent: str = "model",
    evaluations: int = 150,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    finetune_epochs: int = 30,
    finetuning: Mapping[str, Any] | None = None,
    agent_options: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    **environment: Any,
) -> Compressed:
    """Search for the best student of a teacher within a budget, distil it fully, save, export and report it.

    Args:
        teacher: A module, a name, `module:factory` or `file.py:factory`.
        data: A name, `imagefolder:DIR`, a factory, or a pair `(train, test)` of torch datasets; a shipped teacher's own if None.
        budget: A limit a resource, such as `{"macs": 0.5}`, which is the default.
        agent: A name of `compress-env list`, `module:factory`, or a class of Stable-Baselines3 as `module:class`.
        evaluations: How many students to judge.
        seed: Of everything random.
        out: The run folder; a new one in the system's temporary folder if None.
        finetune_epochs: Passes over the training data in the full distillation; 0 leaves it for later, with neither exports nor
            `result.json`.
        finetuning: Further settings of it: `lr`, `batch_size`, `loss` (`compress_env.spec.FinetuneSpec`).
        agent_options: Settings of the agent's own.
        resume: Whether to go on with the run in `out`.
        progress: Whether to show on standard error how far it is.
        environment: Further keywords of `LayerRemoval-v0` (`compress_env.spec`).

    Raises:
        UserError: Before any long work, for anything that cannot be used.
        KeyboardInterrupt: On Ctrl-C, after everything found so far is in the folder; `resume=True` goes on from there.
    """
    if isinstance(finetune_epochs, bool) or not isinstance(finetune_epochs, int) or finetune_epochs < 0:
        raise UserError(f"finetune_epochs has to be a whole number, 0 for no fine-tuning, got {finetune_epochs!r}")
    further = dict(finetuning or {})
    spec = EnvironmentSpec.of_keywords(teacher=teacher, data=data, budget=budget, **environment)
    search_spec = SearchSpec(agent, agent_options or {}, evaluations, seed)
    check_finetuning(spec, FinetuneSpec.of(epochs=finetune_epochs or 1, **further))
    recipe = FinetuneSpec.of(epochs=finetune_epochs, **further) if finetune_epochs else None
    folder, objective = run_search(spec, search_spec, out, resume=resume, progress=progress, finetuning=recipe)
    if not finetune_epochs:
        return _left_for_later(folder, objective, progress)
    return finish(folder, finetune_epochs, objective=objective, progress=progress, **further)


def check_finetuning(environment: EnvironmentSpec, spec: FinetuneSpec) -> None:
    """Look before a search whether its best student can be distilled so. Raises UserError for a loss that is not there."""
    loss_function(load_task(environment.problem.task), spec.loss)


def _left_for_later(folder: RunFolder, objective: Objective, progress: bool) -> Compressed:
    """The best student of a search as it was judged, and a report. Raises UserError if no student meets the budget."""
    from compress_env.report.page import write_report

    trials = folder.trials()
    write_report(folder.path)
    if best_trial(trials) is None:
        raise UserError(f"{folder.path}: {reason_of_none(trials)}")
    best = Finalists(objective, trials, folder.path).ranked(progress)[0]
    student = _evaluator(objective).prepared(best.trial.plan).cpu()
    return Compressed(student, best.trial.plan, best.evaluation, trials, folder.path)


def run_search(
    environment: EnvironmentSpec, search_spec: SearchSpec, out: str | Path | None, *, resume: bool = False,
    command: str | None = None, progress: bool = True, finetuning: FinetuneSpec | None = None,
) -> tuple[RunFolder, Objective]:  # fmt: skip
    """The search alone.

    Args:
        environment: The problem, budget and reward.
        search_spec: The agent and how long it looks.
        out: The run folder; a new one in the system's temporary folder if None.
        resume: Whether to go on with the run in `out`.
        command: The command line that asked for it, for the report.
        progress: Whether to show on standard error how far it is, and first what it is going to take.
        finetuning: The full distillation that is to follow, for that.

    Returns:
        The run folder and the objective, which `finish` takes.

    Raises:
        UserError: Before the teacher is loaded, for an agent or a folder that cannot be used.
        KeyboardInterrupt: On Ctrl-C.
    """
    find_agent(search_spec.agent, search_spec.agent_options)
    folder = RunFolder(Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-")))
    objective = _begun(environment, search_spec, folder, resume, progress)
    folder.begin(environment, search_spec, command)
    left = search_spec.evaluations - len(folder.trials())
    if progress and left > 0:
        say(estimate(objective, left, finetuning).text())
    folder.write("problem.json", objective.problem.measured.to_json())
    if not objective.grows:
        folder.write("sensitivities.json", objective.sensitivities.to_json())
    if sample := objective.problem.sample():
        folder.write("sample.json", sample)
    found = search(
        objective, search_spec.agent, search_spec.evaluations, search_spec.seed, folder, progress, search_spec.agent_options
    )
    if found.interrupted:
        raise KeyboardInterrupt
    final = found.final_policy
    policy = final and FinalPolicy(dict(final.evaluation.metrics), final.reward, dict(final.evaluation.usage))
    folder.write("search.json", {"final_policy": policy and asdict(policy)})
    return folder, objective


def dry_run(
    environment: EnvironmentSpec, search_spec: SearchSpec, out: str | Path | None = None, *, resume: bool = False,
    finetuning: FinetuneSpec | None = None, progress: bool = True,
) -> Estimate:  # fmt: skip
    """What a search, and the full distillation after it, would take on this machine; nothing is written but caches.

    Args:
        environment: The problem, budget and reward.
        search_spec: The agent and how long it looks.
        out: The run folder that the search would have.
        resume: Whether it would go on with the run in `out`.
        finetuning: The full distillation; None if there is to be none.
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: For everything that the search would refuse before it begins.
    """
    find_agent(search_spec.agent, search_spec.agent_options)
    folder = RunFolder(out) if out is not None else None
    objective = _begun(environment, search_spec, folder, resume, progress)
    left = search_spec.evaluations - (len(folder.trials()) if folder else 0)
    return estimate(objective, max(0, left), finetuning)


def _begun(
    environment: EnvironmentSpec, search_spec: SearchSpec, folder: RunFolder | None, resume: bool, progress: bool
) -> Objective:
    """The objective of a search that may write into a folder, with what an earlier part of it has measured."""
    if folder:
        folder.admit(environment, search_spec, resume)
        if resume and folder.trials():  # plans mean the same students, also on another machine
            return _objective(folder, environment, progress)
    return Objective(environment, progress=progress)


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
        further: Fields of `FinetuneSpec`: `lr`, `batch_size`, `loss`.

    Raises:
        UserError: If no student meets the budget yet, or none can be distilled.
    """
    spec = FinetuneSpec.of(epochs=epochs, **further)
    run = folder.recorded()
    with alone_in(folder.path):
        trials = folder.trials()
        if best_trial(trials) is None:
            every = all(t.evaluation.failed for t in trials) and trials
            raise UserError(f"{folder.path}: {reason_of_none(trials)}{'' if every else '; search further with --resume'}")
        objective = objective or objective_of(folder, progress, trust=trust)
        check_problem(trials, objective.problem, folder)
        finalists = Finalists(objective, trials, folder.path)
        problem = objective.problem
        if objective.grows and spec.loss is None:  # a larger network has nothing to learn from a smaller one
            spec = replace(spec, loss=objective.spec.evaluator.loss)
        loss_function(problem.task, spec.loss)
        recipe = finetuning_recipe(len(problem.data.train), epochs, problem.device, spec.lr, spec.batch_size)
        recipe = problem.runnable(recipe)
        made_by = asdict(recipe) | {"loss": loss_name(problem.task, spec.loss)}
        found = _finished(folder, trials, finalists, made_by) or _distilled(folder, finalists, recipe, spec, made_by, run, progress)
        from compress_env.report.page import write_report

        write_report(folder.path)
        for checkpoint in folder.path.glob(CHECKPOINT.format("*")):
            remove(checkpoint)
    return found


def _finished(folder: RunFolder, trials: list[Trial], finalists: Finalists, made_by: Mapping[str, Any]) -> Compressed | None:
    """The outcome that is in the folder, if it is that of these trials and this recipe, and its files are there."""
    try:
        result = folder.result()
        best = next((t for t in trials if result and t.index == result.best_trial), None)
        if result is None or best is None or result.evaluations != len(trials):
            return None
        done = Finetuned.from_json(result.finetune)
        written = [n for n, difference in result.exports.items() if difference is not None]
        if dict(result.recipe) != dict(made_by) or not all((folder.path / name).is_file() for name in written):
            return None
        problem = finalists.objective.problem
        student = load_student(problem.module, problem.graph, folder.path)
    except UserError as error:
        warnings.warn(f"{error}; the student is made again", stacklevel=3)
        return None
    return Compressed(student, best.plan, finalists.known(best), trials, folder.path, (done, result))


def _distilled(
    folder: RunFolder, finalists: Finalists, recipe: Recipe, spec: FinetuneSpec, made_by: Mapping[str, Any], run: Mapping[str, Any],
    progress: bool,
) -> Compressed:  # fmt: skip
    """The best of the finalists that can be distilled, with its files."""
    objective, reason = finalists.objective, ""
    judge = _evaluator(objective)
    problem, data, teacher = objective.problem, objective.problem.data, objective.problem.whole
    for finalist in finalists.ranked(progress):
        best, plan = finalist.trial, finalist.trial.plan
        checkpoint = folder.path / CHECKPOINT.format(f"{plan.key}-{spec.epochs}")
        try:
            student = judge.prepared(plan)
            done = finetune(
                student, teacher, data, recipe, task=problem.task, loss=spec.loss, seed=run["search"]["seed"], at_once=judge.at_once,
                checkpoint=checkpoint, progress=progress,
            )  # fmt: skip
            break
        except (UserError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - what a network raises is up to its author
            reason = str(error) if isinstance(error, EvaluationFailed) else reason_of(error)
            if of_the_machine(error):
                raise UserError(
                    f"the fine-tuning of trial {best.index} ended ({reason}); {checkpoint.name} has what was done so far: see to the "
                    f"machine, and go on with compress-env finetune --out {folder.path}"
                ) from error
            finalists.failed(finalist, f"fine-tuning: {reason}")
            warnings.warn(f"trial {best.index} cannot be fine-tuned ({reason}); the next best takes its place", stacklevel=3)
    else:
        raise EveryStudentFailed(f"{folder.path}: none of the best students can be fine-tuned ({reason})")
    own_answers = None
    if uneven(problem):
        with one_thread(), channels_last(student):
            own_answers = predict(student, data, data.test, judge.at_once)
    student = student.cpu()
    size = save_student(student, plan, folder.path).stat().st_size
    described = metadata(problem, plan, best.limits)
    exports = export_all(student, data.calibration(8), folder.path, metadata=described, progress=progress)
    with one_thread(), channels_last(teacher):
        answers = predict(teacher, data, data.test, judge.at_once)
    teacher_test = problem.task.metrics(answers, data.test.labels if data.labelled else answers)[problem.task.metric]
    counts = len(data.validation), len(data.test)
    if doubt := trained_on(problem.task, finalist.evaluation.teacher_metric, teacher_test, *counts):
        warnings.warn(DoubtfulTeacher(f"the teacher {problem.teacher.name!r} has {doubt}"), stacklevel=3)
    teacher_usage, usage = problem.cost_model.compare(student, plan)
    result = Result(
        metric=problem.task.metric,
        teacher=NetworkResult(teacher_test, teacher_usage, state_bytes(teacher)),
        student=NetworkResult(done.metric_test, usage, size),
        resources={name: ResourceName.of(name) for name in usage},
        runtime=problem.runtime.label,
        budget=dict(best.limits),
        feasible=all(usage[name] <= limit for name, limit in best.limits.items()),
        evaluations=len(finalists.trials),
        seconds=round(sum(t.seconds for t in finalists.trials), 1),
        agent=run["search"]["agent"],
        seed=run["search"]["seed"],
        best_trial=best.index,
        final_policy=_kept(folder, "search.json", lambda data: value_of(FinalPolicy | None, data.get("final_policy"), "final_policy")),
        finetune=done.to_json(),
        exports=exports,
        layers=tuple(network_rows(problem, plan.switched, problem.graph.widths(plan))),
        versions=versions(),
        command=run["command"],
        recipe=made_by,
        metadata=described,
        by_class=() if own_answers is None else tuple(by_class(problem, answers, own_answers)),
    )
    folder.write("result.json", result.to_json())
    return Compressed(student, plan, finalist.evaluation, list(finalists.trials), folder.path, (done, result))


def _evaluator(objective: Objective) -> Evaluator:
    """The objective's evaluator, or one like it where the objective judges by something else than running students."""
    found, spec = objective.evaluator, objective.spec
    return found if isinstance(found, Evaluator) else Evaluator(objective.problem, spec.evaluator, timeout=spec.timeout)


def objective_of(folder: RunFolder, progress: bool = True, *, trust: Trust = False, **changed: Any) -> Objective:
    """The objective that a run folder was made with; data is loaded when it is first asked for.

    Args:
        folder: The run folder.
        progress: Whether to show on standard error how far it is.
        trust: Whether to run code that the folder names, such as a reward in a file: True, or the places of what may be run
            (`["mine.py:reward"]`).
        changed: Fields of `EnvironmentSpec` that are to be others.

    Raises:
        UserError: If a part of it was a Python object, which a file cannot hold, or names code that is not trusted.
    """
    environment, _ = folder.spec(trust)
    environment = replace(environment, **changed)
    return _objective(folder, environment, progress)


def _objective(folder: RunFolder, environment: EnvironmentSpec, progress: bool) -> Objective:
    """An objective with what was measured in a folder."""
    measured, sensitivities = _measured(folder), _sensitivities(folder)
    try:
        return Objective(environment, measured=measured, sensitivities=sensitivities, progress=progress)
    except InvalidPlan as error:
        raise UserError(f"{folder.path / 'problem.json'}: {error}; delete it, and it is made again") from error
    except Damaged as error:
        raise UserError(f"{folder.path / 'sensitivities.json'}: {error}; delete it, and it is made again") from error


def _measured(folder: RunFolder) -> Measured | None:
    """The measurements that a run keeps, or None if it has none; they are made again then, which takes images."""
    return _kept(folder, "problem.json", Measured.from_json)


def _sensitivities(folder: RunFolder) -> Sensitivities | None:
    """The sensitivities that a run keeps, or None."""
    return _kept(folder, "sensitivities.json", Sensitivities.from_json)


def _kept(folder: RunFolder, name: str, read: Callable[[Any], T]) -> T | None:
    if not (folder.path / name).is_file():
        return None
    data = folder.read(name)
    try:
        return read(value_of(Mapping[str, Any], data, name))
    except (Damaged, InvalidPlan) as error:
        raise UserError(f"{folder.path / name} is damaged ({error}); delete it, and it is made again") from None


def learn_policy(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    budget: Mapping[str, Any] | None = None,
    agent: str = "ppo",
    agent_options: Mapping[str, Any] | None = None,
    episodes: int = 10_000,
    seed: int = 0,
    progress: bool = True,
    trust: Trust = False,
) -> list[tuple[str, float]]:
    """Learn a policy from the trials of run folders, of one or several teachers, agents and budgets; nothing is evaluated.

    For each teacher, a surrogate model of the reward is fitted to all of its trials; the agent plays episodes against the models.
    Ctrl-C ends the learning, and everything learned so far is written.

    Args:
        runs: Run folders.
        out: The file of the policy.
        budget: The budgets that it learns for, `{"macs": ["20%", "80%"]}` if None.
        agent: One that learns.
        agent_options: Settings of the agent's own.
        episodes: How many it plays.
        seed: Of everything random.
        progress: Whether to show on standard error how far it is.
        trust: As for `objective_of`.

    Returns:
        For each teacher its name, and by its model the share of what the students of the action 0 lack that the policy makes good, 1
        being all of it.

    Raises:
        UserError: Before any long work, for anything that cannot be used.
    """
    from compress_env.agents import offline

    find_agent(agent, agent_options)
    alike: dict[str, list[RunFolder]] = {}
    for folder in map(RunFolder, runs):
        environment, _ = folder.spec(trust)
        if environment.constraint != "hard":
            raise UserError(f"{folder.path} has soft limits, whose rewards are only for its budget; search with hard ones")
        if len(folder.trials()) < 2:
            raise UserError(f"{folder.path} has too few trials to learn from; search further with --resume")
        alone = replace(environment, budget={"macs": 1}, actions="relative", shaping=True)  # trials are of plans, however decided on
        alike.setdefault(repr(alone), []).append(folder)
    make_folder(Path(out).parent)
    teachers = []
    for folders in alike.values():
        objective = objective_of(folders[0], progress, trust=trust, budget=budget or {"macs": ["20%", "80%"]}, actions="relative")
        trials = [trial for folder in folders for trial in folder.trials()]
        name = objective.problem.teacher.name
        with announced(f"fitting a model to {len(trials)} students of {name}", progress):
            teachers.append(offline.SurrogateTeacher(objective, trials, np.random.default_rng(seed)))
    gains = offline.learn(teachers, agent, episodes, seed, Path(out), settings=agent_options, progress=progress)
    return [(teacher.objective.problem.teacher.name, gain) for teacher, gain in zip(teachers, gains)]


__all__ = ["Compressed", "compress", "dry_run", "finish", "learn_policy", "objective_of", "run_search"]
