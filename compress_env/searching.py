"""A search into a run folder, with everything that is looked at before; and how long it would take."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from compress_env.extras import need
from compress_env.objective import Objective
from compress_env.progress import say
from compress_env.report.parts import PARTS, Parts
from compress_env.search.callbacks import find_callbacks, make_callbacks
from compress_env.search.estimate import Estimate, estimate
from compress_env.search.reopened import objective_in
from compress_env.search.result import FinalPolicy
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec, FinetuneSpec, SearchSpec


def run_search(
    environment: EnvironmentSpec, search_spec: SearchSpec, out: str | Path | None, *, resume: bool = False,
    command: str | None = None, progress: bool = True, finetuning: FinetuneSpec | None = None, objective: Objective | None = None,
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
        objective: One of these settings whose problem has been built, as another budget's (`Objective.at`); whoever gives it has said
            what all will take. Made, from what is in the folder, if None.

    Returns:
        The run folder and the objective, which `finish` takes.

    Raises:
        UserError: Before the teacher is loaded, for an agent or a folder that cannot be used.
        KeyboardInterrupt: On Ctrl-C.
    """
    check_search(search_spec)
    folder = RunFolder(Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-")))
    alone = objective is None
    if objective is None:
        objective = _begun(environment, search_spec, folder, resume, progress)
    else:
        folder.admit(environment, search_spec, resume)
    callbacks = make_callbacks(search_spec.callbacks)
    folder.begin(environment, search_spec, command)
    left = search_spec.evaluations - len(folder.trials())
    if progress and left > 0 and alone:
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
    check_search(search_spec)
    folder = RunFolder(out) if out is not None else None
    objective = _begun(environment, search_spec, folder, resume, progress)
    left = search_spec.evaluations - (len(folder.trials()) if folder else 0)
    return estimate(objective, max(0, left), finetuning)


def check_search(search_spec: SearchSpec) -> None:
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
