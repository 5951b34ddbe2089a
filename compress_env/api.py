"""`compress`: a teacher, data and a budget go in, a distilled student within the budget comes out, with files and a report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress_env import guarantee
from compress_env.bisection import BUDGET
from compress_env.errors import UserError
from compress_env.extras import ONNX, need
from compress_env.files import make_folder
from compress_env.finishing import Compressed, check_finetuning, finish, left_for_later
from compress_env.objective import Objective
from compress_env.own_code import Trust
from compress_env.presets import with_preset
from compress_env.progress import announced, say
from compress_env.report.parts import PARTS, Parts
from compress_env.search.callbacks import find_callbacks, make_callbacks
from compress_env.search.estimate import Estimate, estimate
from compress_env.search.promise import AttemptsFile
from compress_env.search.reopened import objective_in, objective_of
from compress_env.search.result import FinalPolicy
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec
from compress_env.tasks import load_task

SEEN: dict[str, Any] = {"actions": "relative", "observation": "embedding"}
"""What a policy that is learned from trials is about, whatever those agents saw and meant that made them."""


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
    max_accuracy_drop: float | None = None,
    workers: int = 1,
    cluster: str | None = None,
    callbacks: Sequence[Any] = (),
    tensorboard: bool = False,
    resume: bool = False,
    progress: bool = True,
    **environment: Any,
) -> Compressed:
    """Search for the best student of a teacher within a budget, distil it fully, save, export and report it.

    Args:
        teacher: A module, a name, `module:factory` or `file.py:factory`.
        data: A name, `imagefolder:DIR`, a factory, or a pair `(train, test)` of torch datasets; a shipped teacher's own if None.
        budget: A limit a resource, such as `{"macs": 0.5}`, which is the default; with `max_accuracy_drop` a range of one resource, by
            default `{"macs": "10%..100%"}`.
        agent: A name of `compress-env list`, `module:factory`, or a class of Stable-Baselines3 as `module:class`. With the name of
            an earlier system, the environment is as it was there, but for what `environment` says.
        evaluations: How many students to judge.
        seed: Of everything random.
        out: The run folder; a new one in the system's temporary folder if None.
        finetune_epochs: Passes over the training data in the full distillation; 0 leaves it for later, with neither exports nor
            `result.json`.
        finetuning: Further settings of it: `lr`, `batch_size`, `loss`, `temperature`, `label_weight`
            (`compress_env.spec.FinetuneSpec`).
        agent_options: Settings of the agent's own.
        max_accuracy_drop: Look for the smallest student within the budget that, after distillation, loses at most so many points
            (0.5: 91.5 % where the teacher has 92 %) of the task's main metric on validation examples; `result.promise` says what that
            is worth (docs/accuracy-guaranteed.md).
        workers: How many students to judge at once, each in a process of its own; a script that sets it needs the usual
            `if __name__ == "__main__":`.
        cluster: A Ray cluster for the workers: "auto", or its address.
        callbacks: Told of each trial (`compress_env.search.callbacks.Callback`), or `module:factory` of some.
        tensorboard: Whether to write scalars for TensorBoard, to the folder `tensorboard` in the run folder.
        resume: Whether to go on with the run in `out`.
        progress: Whether to show on standard error how far it is.
        environment: Further keywords of `LayerRemoval-v0` (`compress_env.spec`).

    Raises:
        UserError: Before any long work, for anything that cannot be used.
        NothingHolds: If no smaller student loses so little; the run folder has what was tried.
        KeyboardInterrupt: On Ctrl-C, after everything found so far is in the folder; `resume=True` goes on from there.
    """
    if isinstance(finetune_epochs, bool) or not isinstance(finetune_epochs, int) or finetune_epochs < 0:
        raise UserError(f"finetune_epochs has to be a whole number, 0 for no fine-tuning, got {finetune_epochs!r}")
    further = dict(finetuning or {})
    if max_accuracy_drop is not None:
        budget = budget or BUDGET
    spec = EnvironmentSpec.of_keywords(teacher=teacher, data=data, budget=budget, **with_preset(agent, environment))
    search_spec = SearchSpec.of(
        agent=agent, agent_options=agent_options or {}, evaluations=evaluations, seed=seed, workers=workers, cluster=cluster,
        callbacks=callbacks, tensorboard=tensorboard,
    )  # fmt: skip
    check_finetuning(spec, FinetuneSpec.of(epochs=finetune_epochs or 1, **further))
    if max_accuracy_drop is not None:
        guarantee.check(max_accuracy_drop, spec, finetune_epochs)
        each = FinetuneSpec.of(epochs=finetune_epochs, **further)
        return run_guaranteed(spec, search_spec, out, max_accuracy_drop, each, resume=resume, progress=progress)
    recipe = FinetuneSpec.of(epochs=finetune_epochs, **further) if finetune_epochs else None
    folder, objective = run_search(spec, search_spec, out, resume=resume, progress=progress, finetuning=recipe)
    if not finetune_epochs:
        return left_for_later(folder, objective, progress)
    return finish(folder, finetune_epochs, objective=objective, progress=progress, **further)


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
    _check(search_spec)
    folder = RunFolder(Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-")))
    objective = _begun(environment, search_spec, folder, resume, progress)
    callbacks = make_callbacks(search_spec.callbacks)
    folder.begin(environment, search_spec, command)
    left = search_spec.evaluations - len(folder.trials())
    if progress and left > 0:
        say(estimate(objective, left, finetuning).text())
    folder.write("problem.json", objective.problem.measured.to_json())
    if objective.predicts:
        folder.write("sensitivities.json", objective.sensitivities.to_json())
    if not objective.grows:
        folder.write(PARTS, Parts.of(objective.problem).to_json())
    if sample := objective.problem.sample():
        folder.write("sample.json", sample)
    found = search(
        objective, search_spec.agent, search_spec.evaluations, search_spec.seed, folder, progress, search_spec.agent_options,
        search_spec.workers, search_spec.cluster, callbacks, search_spec.tensorboard,
    )  # fmt: skip
    if found.interrupted:
        raise KeyboardInterrupt
    final = found.final_policy
    policy = final and FinalPolicy(dict(final.evaluation.metrics), final.reward, dict(final.evaluation.usage))
    folder.write("search.json", {"final_policy": policy and asdict(policy)})
    return folder, objective


def run_guaranteed(
    environment: EnvironmentSpec, search_spec: SearchSpec, out: str | Path | None, max_accuracy_drop: float, finetuning: FinetuneSpec,
    *, resume: bool = False, command: str | None = None, progress: bool = True,
) -> Compressed:  # fmt: skip
    """A search over a range of budgets, then the smallest student that loses so little; `guarantee.check` has looked at all of it.

    Args:
        environment: The problem, with a range of one resource in its budget.
        search_spec: The agent and how long it looks.
        out: The run folder; a new one in the system's temporary folder if None.
        max_accuracy_drop: In points.
        finetuning: How each student is distilled.
        resume: Whether to go on with the run in `out`.
        command: The command line that asked for it, for the report.
        progress: Whether to show on standard error how far it is.

    Raises:
        NothingHolds: If no smaller student loses so little.
    """
    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-"))
    task = load_task(environment.problem.task)
    attempts = AttemptsFile(out, max_accuracy_drop, search_spec.evaluations, finetuning, task)
    if resume:
        attempts.check()
    folder, objective = run_search(
        environment, search_spec, out, resume=resume, command=command, progress=progress, finetuning=finetuning
    )
    return guarantee.guaranteed(folder, objective, attempts, finetuning, progress)


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
    _check(search_spec)
    folder = RunFolder(out) if out is not None else None
    objective = _begun(environment, search_spec, folder, resume, progress)
    left = search_spec.evaluations - (len(folder.trials()) if folder else 0)
    return estimate(objective, max(0, left), finetuning)


def _check(search_spec: SearchSpec) -> None:
    """Look whether there is such an agent, and what is to look on. Raises UserError if not."""
    find_agent(search_spec.agent, search_spec.agent_options)
    find_callbacks(search_spec.callbacks)
    if search_spec.cluster is not None:
        need("a cluster of workers", "ray")
    if search_spec.tensorboard:
        need("--tensorboard", "tensorboard")


def _begun(
    environment: EnvironmentSpec, search_spec: SearchSpec, folder: RunFolder | None, resume: bool, progress: bool
) -> Objective:
    """The objective of a search that may write into a folder, with what an earlier part of it has measured."""
    if folder:
        folder.admit(environment, search_spec, resume)
        if resume and folder.trials():  # plans mean the same students, also on another machine
            return objective_in(folder, environment, progress)
    return Objective(environment, progress=progress)


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
    need("a policy's file", *ONNX)
    alike: dict[str, list[RunFolder]] = {}
    for folder in map(RunFolder, runs):
        environment, _ = folder.spec(trust)
        if environment.constraint != "hard":
            raise UserError(f"{folder.path} has soft limits, whose rewards are only for its budget; search with hard ones")
        if len(folder.trials()) < 2:
            raise UserError(f"{folder.path} has too few trials to learn from; search further with --resume")
        alone = replace(environment, **SEEN, budget={"macs": 1}, shaping=True)  # trials are of plans, however decided on
        alike.setdefault(repr(alone), []).append(folder)
    make_folder(Path(out).parent)
    teachers = []
    for folders in alike.values():
        objective = objective_of(folders[0], progress, trust=trust, budget=budget or {"macs": ["20%", "80%"]}, **SEEN)
        trials = [trial for folder in folders for trial in folder.trials()]
        name = objective.problem.teacher.name
        with announced(f"fitting a model to {len(trials)} students of {name}", progress):
            teachers.append(offline.SurrogateTeacher(objective, trials, np.random.default_rng(seed)))
    gains = offline.learn(teachers, agent, episodes, seed, Path(out), settings=agent_options, progress=progress)
    return [(teacher.objective.problem.teacher.name, gain) for teacher, gain in zip(teachers, gains)]


__all__ = ["Compressed", "compress", "dry_run", "finish", "learn_policy", "objective_of", "run_guaranteed", "run_search"]
