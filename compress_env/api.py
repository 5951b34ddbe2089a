"""`compress`: a teacher, data and a budget go in, a distilled student within the budget comes out, with files and a report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from compress_env import guarantee
from compress_env.bisection import BUDGET
from compress_env.curve import Curve, check_curve, points_of, run_curve
from compress_env.errors import UserError
from compress_env.extras import ONNX, need
from compress_env.files import make_folder
from compress_env.finishing import Compressed, check_finetuning, finish, left_for_later
from compress_env.own_code import Trust
from compress_env.presets import with_preset
from compress_env.progress import announced
from compress_env.search.promise import AttemptsFile
from compress_env.search.reopened import objective_of
from compress_env.search.run import find_agent
from compress_env.search.store import RunFolder
from compress_env.searching import dry_run, run_search
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec
from compress_env.tasks import load_task

SEEN: dict[str, Any] = {"actions": "relative", "observation": "embedding"}
"""What a policy that is learned from trials is about, whatever those agents saw and meant that made them."""


@overload
def compress(
    teacher: Any = ..., data: Any = ..., budget: Mapping[str, Any] | None = ..., agent: str = ..., evaluations: int = ...,
    seed: int = ..., out: str | Path | None = ..., *, budgets: None = ..., finetune_epochs: int = ...,
    finetuning: Mapping[str, Any] | None = ..., agent_options: Mapping[str, Any] | None = ..., max_accuracy_drop: float | None = ...,
    workers: int = ..., cluster: str | None = ..., callbacks: Sequence[Any] = ..., tensorboard: bool = ..., resume: bool = ...,
    progress: bool = ..., **environment: Any,
) -> Compressed: ...  # fmt: skip


@overload
def compress(
    teacher: Any = ..., data: Any = ..., budget: None = ..., agent: str = ..., evaluations: int = ..., seed: int = ...,
    out: str | Path | None = ..., *, budgets: Sequence[Mapping[str, Any]], finetune_epochs: int = ...,
    finetuning: Mapping[str, Any] | None = ..., agent_options: Mapping[str, Any] | None = ..., max_accuracy_drop: None = ...,
    workers: int = ..., cluster: str | None = ..., callbacks: Sequence[Any] = ..., tensorboard: bool = ..., resume: bool = ...,
    progress: bool = ..., **environment: Any,
) -> Curve: ...  # fmt: skip


def compress(
    teacher: Any = "resnet8-digits",
    data: Any = None,
    budget: Mapping[str, Any] | None = None,
    agent: str = "model",
    evaluations: int = 150,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    budgets: Sequence[Mapping[str, Any]] | None = None,
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
) -> Compressed | Curve:
    """Search for the best student of a teacher within a budget, distil it fully, save, export and report it.

    With `budgets`, do so at each of several budgets, and put the students beside each other and the uniform ones.

    Args:
        teacher: A module, a name, `module:factory` or `file.py:factory`.
        data: A name, `imagefolder:DIR`, a factory, or a pair `(train, test)` of torch datasets; a shipped teacher's own if None.
        budget: A limit a resource, such as `{"macs": 0.5}`, which is the default; with `max_accuracy_drop` a range of one resource, by
            default `{"macs": "10%..100%"}`.
        budgets: Several budgets in the place of one, such as `[{"macs": "25%"}, {"macs": "50%"}]`; they differ in the limit on one
            resource (docs/how-to/curve.md).
        agent: A name of `compress-env list`, `module:factory`, or a class of Stable-Baselines3 as `module:class`. With the name of
            an earlier system, the environment is as it was there, but for what `environment` says.
        evaluations: How many students to judge.
        seed: Of everything random.
        out: The run folder, with `budgets` the folder that those are in; a new one in the system's temporary folder if None.
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

    Returns:
        The student with its files; with `budgets` a table of all, and each of them (`compress_env.curve.Curve`).

    Raises:
        UserError: Before any long work, for anything that cannot be used.
        NothingHolds: If no smaller student loses so little; the run folder has what was tried.
        KeyboardInterrupt: On Ctrl-C, after everything found so far is in the folder; `resume=True` goes on from there.
    """
    if isinstance(finetune_epochs, bool) or not isinstance(finetune_epochs, int) or finetune_epochs < 0:
        raise UserError(f"finetune_epochs has to be a whole number, 0 for no fine-tuning, got {finetune_epochs!r}")
    further = dict(finetuning or {})
    if budgets is not None:
        check_curve(budget, max_accuracy_drop, finetune_epochs)
        budget = points_of(budgets)[0].budget
    elif max_accuracy_drop is not None:
        budget = budget or BUDGET
    spec = EnvironmentSpec.of_keywords(teacher=teacher, data=data, budget=budget, **with_preset(agent, environment))
    search_spec = SearchSpec.of(
        agent=agent, agent_options=agent_options or {}, evaluations=evaluations, seed=seed, workers=workers, cluster=cluster,
        callbacks=callbacks, tensorboard=tensorboard,
    )  # fmt: skip
    check_finetuning(spec, FinetuneSpec.of(epochs=finetune_epochs or 1, **further))
    if budgets is not None:
        each = FinetuneSpec.of(epochs=finetune_epochs, **further)
        return run_curve(spec, budgets, search_spec, out, each, resume=resume, progress=progress)
    if max_accuracy_drop is not None:
        guarantee.check(max_accuracy_drop, spec, finetune_epochs)
        each = FinetuneSpec.of(epochs=finetune_epochs, **further)
        return run_guaranteed(spec, search_spec, out, max_accuracy_drop, each, resume=resume, progress=progress)
    recipe = FinetuneSpec.of(epochs=finetune_epochs, **further) if finetune_epochs else None
    folder, objective = run_search(spec, search_spec, out, resume=resume, progress=progress, finetuning=recipe)
    if not finetune_epochs:
        return left_for_later(folder, objective, progress)
    return finish(folder, finetune_epochs, objective=objective, progress=progress, **further)


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


class Gain(NamedTuple):
    """What a policy brings to a teacher.

    Attributes:
        teacher: Its name.
        gain: By the model of its trials, the share of what the students of the action 0 lack that the policy makes good; 1 is all.
        runs: The folders that the trials are from.
    """

    teacher: str
    gain: float
    runs: list[str]


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
) -> list[Gain]:
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
        For each teacher, data and settings what the policy brings.

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
    names = [teacher.objective.problem.teacher.name for teacher in teachers]
    return [Gain(name, gain, [str(f.path) for f in folders]) for name, gain, folders in zip(names, gains, alike.values())]


__all__ = ["Compressed", "Gain", "compress", "dry_run", "finish", "learn_policy", "objective_of", "run_guaranteed", "run_search"]
