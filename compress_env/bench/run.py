"""`bench run`: scenarios x agents x seeds at an equal number of evaluations, on all cores, skipping what is finished."""

from __future__ import annotations

import math
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from compress_env.allocation.sensitivities import probes
from compress_env.bench.scenarios import SCENARIOS
from compress_env.contexts import one_thread_in_children
from compress_env.errors import UserError
from compress_env.files import JsonLines, make_folder
from compress_env.name_value import parse_setting
from compress_env.objective import Objective
from compress_env.presets import PRESETS, with_preset
from compress_env.registry import load_attribute
from compress_env.search.executors.worker import end_with
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import Trial
from compress_env.spec import keywords
from compress_env.teachers import TEACHERS

WITHOUT_SENSITIVITIES = ("random", "uniform", "stages", "greedy", "evolution", "tpe", "cma-es")
"""Agents that look at no observation. With absolute actions they need no sensitivities, and have those evaluations for themselves."""
Table = dict[str, dict[str, list["Run"]]]
"""Scenario -> agent -> runs by seed; all agents of a scenario have the same seeds."""


@dataclass(frozen=True)
class Run:
    """A finished search.

    Attributes:
        scenario: Its scenario.
        agent: Its agent, with settings of its own.
        seed: Its seed.
        evaluations: How many students were judged.
        best: After each evaluation, the highest reward so far of a student within the budget; -1 before there is one.
        metric: That student's main metric on validation images, likewise.
        seconds: Since the beginning, on one core, likewise.
        mean_last: Mean reward of the last tenth: what the agent proposes in the end.
        final: Reward of the policy without noise, None for agents without one.
        front: `(share of the first resource, metric)` of students that no other is as cheap and as good as.
        plan: The best student's, as JSON; "" if no student met the budget.
        mean_first: Mean reward of the first tenth; None in older files.
        measured: Evaluations that sensitivities had taken before, once a teacher; 0 for an agent that does without.
    """

    scenario: str
    agent: str
    seed: int
    evaluations: int
    best: tuple[float, ...]
    metric: tuple[float, ...]
    seconds: tuple[float, ...]
    mean_last: float
    final: float | None
    front: tuple[tuple[float, float], ...]
    plan: str
    mean_first: float | None = None
    measured: int = 0


def summarise(
    scenario: str, agent: str, seed: int, evaluations: int, trials: Sequence[Trial], final: Trial | None,
    judge: Objective | None = None,
) -> Run:  # fmt: skip
    """A `Run` from its trials; a search that ends early (uniform has one student) keeps its best to the end.

    With a `judge`, the search chooses its best by its own rewards, and all numbers are what this objective says of the same plans.
    """
    best, metric, plan, top = [-1.0], [0.0], "", -math.inf
    chosen = trials
    if judge:
        trials, final = [_judged_by(judge, t) for t in trials], final and _judged_by(judge, final)
    for own, trial in zip(chosen, trials):
        better = own.feasible and not own.evaluation.failed and own.reward > top
        top = own.reward if better else top
        best.append(trial.reward if better else best[-1])
        metric.append(trial.evaluation.metric if better else metric[-1])
        plan = trial.plan.to_json() if better else plan
    rest = evaluations - len(trials)
    seconds = np.cumsum([t.seconds for t in trials]).tolist()
    name = next(iter(trials[0].limits))
    points = sorted(
        (t.evaluation.usage[name] / t.evaluation.teacher_usage[name], t.evaluation.metric) for t in trials
    )
    front = [p for i, p in enumerate(points) if all(p[1] > q[1] for q in points[:i])]
    tenth, rewards = max(1, evaluations // 10), [t.reward for t in trials]
    return Run(
        scenario, agent, seed, evaluations,
        tuple(best[1:] + best[-1:] * rest), tuple(metric[1:] + metric[-1:] * rest),
        tuple(round(s, 3) for s in seconds + seconds[-1:] * rest),
        float(np.mean(rewards[-tenth:])), final.reward if final else None, tuple(front), plan, float(np.mean(rewards[:tenth])),
    )  # fmt: skip


def _judged_by(judge: Objective, trial: Trial) -> Trial:
    """A trial with the numbers and the reward that another objective gives its plan."""
    evaluation = judge.evaluator(trial.plan)
    return replace(trial, evaluation=evaluation, reward=judge.reward(evaluation, trial.limits)[0])


def results(path: Path) -> JsonLines[Run]:
    """A results file, a finished run a line."""
    return JsonLines(path, Run)


class NotComparable(UserWarning):
    """A scenario whose agents have no evaluations and seed in common; the message says which they have, and what to run."""


def load(path: Path) -> Table:
    """The runs of a results file, for each scenario with the most evaluations, and the seeds, that all of its agents have.

    A scenario in which they have none in common is left out with a warning.

    Raises:
        UserError: If there are no runs, or no scenario is left.
    """
    runs = results(path).read()
    if not runs:
        raise UserError(f"there are no results in {path}; make them with `compress-env bench run --out {path.parent}`")
    table: Table = {}
    for scenario in dict.fromkeys(r.scenario for r in runs):
        agents = list(dict.fromkeys(r.agent for r in runs if r.scenario == scenario))
        for evaluations in sorted({r.evaluations for r in runs}, reverse=True):
            own: dict[str, dict[int, Run]] = {agent: {} for agent in agents}
            for r in runs:
                if (r.scenario, r.evaluations) == (scenario, evaluations):
                    own[r.agent][r.seed] = r
            if seeds := sorted(set.intersection(*map(set, own.values()))):
                table[scenario] = {agent: [by_seed[s] for s in seeds] for agent, by_seed in own.items()}
                break
    left = [scenario for scenario in dict.fromkeys(r.scenario for r in runs) if scenario not in table]
    told = [_not_comparable(scenario, [r for r in runs if r.scenario == scenario], path) for scenario in left]
    if not table:
        raise UserError(f"there is nothing to compare in {path}: {'; '.join(told)}")
    for each in told:
        warnings.warn(NotComparable(f"left out: {each}"), stacklevel=1)
    return table


def _not_comparable(scenario: str, runs: Sequence[Run], path: Path) -> str:
    """What the agents of a scenario have, none of it common to all, and the command that runs what is missing."""
    agents = list(dict.fromkeys(r.agent for r in runs))
    had = "; ".join(f"{agent} has {_evaluations_of([r for r in runs if r.agent == agent])}" for agent in agents)
    command = ["compress-env", "bench", "run", "--scenario", scenario, *(word for agent in agents for word in ("--agent", agent))]
    command += ["--evaluations", str(max(r.evaluations for r in runs)), "--seeds", str(max(r.seed for r in runs) + 1)]
    command += ["--out", str(path.parent)]
    return f"the agents of {scenario} have no number of evaluations and seed in common ({had}); run {shlex.join(command)}"


def _evaluations_of(runs: Sequence[Run]) -> str:
    """Numbers of evaluations of an agent's runs, each with its seeds."""
    seeds: dict[int, set[int]] = {}
    for r in runs:
        seeds.setdefault(r.evaluations, set()).add(r.seed)
    return " and ".join(
        f"{n} evaluations with seed{'s' * (len(own) > 1)} {', '.join(map(str, sorted(own)))}" for n, own in sorted(seeds.items())
    )


def one(scenario: str, agent: str, seed: int, evaluations: int, data: str | None, folder: Path) -> Run:
    """A search of its own, which goes on from its folder if it was interrupted. Called in worker processes."""
    name, settings, environment = with_options(agent)
    judge = objective(scenario, data, environment)
    common = objective(scenario, data) if environment else judge
    without = name in WITHOUT_SENSITIVITIES and (judge.actions != "relative" or name in ("uniform", "stages"))
    without = without or name in PRESETS and not judge.predicts
    measured = len(probes((common if without else judge).problem))
    count = evaluations + measured if without else evaluations
    found = search(judge, name, count, seed, RunFolder(folder), progress=False, settings=settings)
    if found.interrupted:
        raise KeyboardInterrupt
    run = summarise(scenario, agent, seed, count, found.trials, found.final_policy, _other(judge, common))
    return replace(run, evaluations=evaluations, measured=0 if without else measured)


def _other(own: Objective, common: Objective) -> Objective | None:
    """The objective that all have in common, if a search's own judges the same plans otherwise; else None."""
    a, b = own.spec, common.spec
    alike = (a.reward, a.evaluator, a.problem.ranking) == (b.reward, b.evaluator, b.problem.ranking)
    return None if alike else common


def with_options(agent: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """`"ddpg tau=0.02 shaping=false"` as the agent, its settings, and those of the environment among them. Raises UserError.

    The name of an earlier system gives settings of the environment, too.
    """
    name, *given = shlex.split(agent) or [""]
    settings = dict(map(parse_setting, given))
    own = {key: value for key, value in settings.items() if key not in keywords()}
    return name, own, with_preset(name, {key: value for key, value in settings.items() if key not in own})


def objective(scenario: str, data: str | None, environment: Mapping[str, Any] | None = None) -> Objective:
    """The objective of a scenario; `data` is for those on CIFAR-10, and `environment` has further keywords."""
    entry = SCENARIOS.get(scenario)
    teacher = entry.arguments["teacher"]
    needs_data = teacher in TEACHERS.names() and TEACHERS.get(teacher).data == "cifar10"
    arguments = dict(entry.arguments) | ({"data": data} if data and needs_data else {})
    kind = load_attribute(str(gym.spec(entry.env_id).entry_point), "environment")
    return kind.make_objective(False, **{**arguments, **(environment or {})})


def run(
    scenarios: Sequence[str], agents: Sequence[str], seeds: Sequence[int], evaluations: int, out: Path, *,
    data: str | None = None, jobs: int | None = None, progress: bool = True,
) -> list[Run]:  # fmt: skip
    """All combinations that `out/results.jsonl` does not have yet, in parallel, each appended when it is done.

    With more evaluations than before, searches go on from where they ended.

    Args:
        scenarios: Names, or `module:attribute`.
        agents: Names, with settings of their own after them if need be (`"ddpg model_episodes=0"`).
        seeds: Each gives a search.
        evaluations: Students a search.
        out: The folder.
        data: For scenarios on CIFAR-10, for example `imagefolder:DIR`; torchvision's own if None.
        jobs: Processes; the cores if None.
        progress: Whether to show on standard error how far it is.

    Returns:
        All runs of the file.

    Raises:
        UserError: For unknown names, before anything is run.
    """
    for name in scenarios:
        SCENARIOS.get(name)
    for agent in agents:
        find_agent(*with_options(agent)[:2])
    make_folder(out)
    with alone_in(out):
        return _run(
            scenarios, agents, seeds, evaluations, out / "results.jsonl", data, jobs or len(os.sched_getaffinity(0)), progress
        )


def _run(
    scenarios: Sequence[str], agents: Sequence[str], seeds: Sequence[int], evaluations: int, path: Path, data: str | None, jobs: int,
    progress: bool,
) -> list[Run]:  # fmt: skip
    file = results(path)
    file.repair()
    done = file.read()
    known: dict[tuple[str, str, int], list[int]] = {}
    for r in done:
        known.setdefault((r.scenario, r.agent, r.seed), []).append(r.evaluations)
    asked = [(x, a, s) for s in seeds for x in scenarios for a in agents]
    todo = [key for key in asked if evaluations not in known.get(key, [])]
    for x, a, s in todo:
        if (most := max(known.get((x, a, s), [0]))) > evaluations:
            raise UserError(
                f"{path}: seed {s} of {a} in {x} has {most} evaluations already; give at least as many as {most}, or another --out"
            )
    context = get_context("spawn")
    stop = context.Event()
    with (
        one_thread_in_children(),  # they compete for the same cores otherwise
        ProcessPoolExecutor(
            min(jobs, max(1, len(todo))), mp_context=context, initializer=end_with, initargs=(os.getpid(), stop)
        ) as pool,
        tqdm(total=len(todo), unit="search", desc="bench", disable=not progress) as bar,
    ):
        futures = {
            pool.submit(one, x, a, s, evaluations, data, path.parent / "runs" / x / a / str(s)): (x, a, s)
            for x, a, s in todo
        }
        try:
            for future in as_completed(futures):
                result = future.result()
                file.append(result)
                done.append(result)
                bar.update()
                bar.set_postfix_str("{} {} {}".format(*futures[future]))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done
