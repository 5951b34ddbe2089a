"""How fast decisions are, where the time of an episode goes, and what a candidate costs beside two other ways to get one.

All seconds are CPU seconds of one thread, so that what else the machine does matters little.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import mean, median
from time import thread_time
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from tqdm.auto import tqdm

from compress_env.agents.model import FACTOR
from compress_env.allocation.allocator import Allocator
from compress_env.contexts import one_thread, seeded
from compress_env.distill.recipes import finetuning_recipe
from compress_env.distill.short import ShortDistillation
from compress_env.distill.train import fit, predict
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources.cost_model import CostModel
from compress_env.surgery import build
from compress_env.surgery.build import build_student
from compress_env.surgery.layout import channels_last
from compress_env.surgery.plan import Plan
from compress_env.walk.observation import Embedding
from compress_env.walk.walk import Walk

SHARES = 0.25, 0.75  # of the teacher's MACs, between which budgets are drawn
N2N_EPOCHS = 5
TOGETHER = 100
"""Plans that a search with a model asks for at once."""
STAGES = (
    (LayerRemovalEnv, "reset", "reset"),
    (Allocator, "reference", "allocation"),
    (Allocator, "factor", "allocation"),
    (Walk, "step", "decisions"),
    (Objective, "completed", "decisions"),
    (Embedding, "__call__", "observations"),
    (build, "build_student", "build"),
    (CostModel, "count", "count usage"),
    (Evaluator, "prepare", "refit"),
    (ShortDistillation, "__call__", "distil"),
    (Evaluator, "__call__", "validation"),
    (LayerRemovalEnv, "step", "rest"),
)
"""Functions that are timed, and under which name; each without those that it calls."""
EVALUATION = ("refit", "distil", "validation")


def speed(objective: Objective, evaluator: Evaluator, seconds: float, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Every measurement, as JSON-able numbers; `table` prints them.

    Args:
        objective: The teacher, its data and a budget.
        evaluator: The objective's.
        seconds: About how long each measurement takes.
        seed: Of budgets and actions.
        progress: Whether to show how far it is.

    Returns:
        decisions: steps a second with and without the observation, every episode at a fresh budget and with nothing remembered.
        plans: seconds of a plan that relative actions lead to, alone and of TOGETHER at once.
        profile: seconds of an episode a stage, averaged. build: medians over random plans. peers: a way to a candidate each.
    """
    rng, problem = np.random.default_rng(seed), objective.problem
    with one_thread():
        return {
            "teacher": problem.teacher.name,
            "data": problem.data.name,
            "steps": objective.steps,
            "decisions": decisions(objective, seconds, rng, progress),
            "plans": plans(objective, seconds, rng, progress),
            "profile": profile(objective, seconds, rng, progress),
            "build": building(problem, seconds, rng, progress),
            "peers": peers(evaluator, seconds, rng, progress),
        }


def rounds(what: str, seconds: float, least: int, progress: bool) -> Iterator[None]:
    """Goes on until so many seconds have passed, and for a least number of times, with a bar."""
    began, done = thread_time(), 0
    with tqdm(
        total=seconds, desc=what, leave=False, disable=not progress, bar_format="{desc}: {percentage:3.0f}%|{bar}|"
    ) as bar:
        while done < least or bar.n < seconds:
            yield
            done += 1
            bar.n = min(seconds, thread_time() - began)
            bar.update(0)


def decisions(objective: Objective, seconds: float, rng: np.random.Generator, progress: bool) -> dict[str, float]:
    """Steps a second of the environment and of walks, each with its completion, up to the last decision, which also evaluates."""
    problem, env = objective.problem, LayerRemovalEnv.of(objective)

    def start_env() -> Callable:
        env.reset(options={"budget": random_budget(problem, rng)})
        return env.step

    def start_walk() -> Callable:
        walk = objective.begin({"macs": random_budget(problem, rng)["macs"] * problem.cost_model.teacher["macs"]})

        objective.completed(walk)  # what is found once for a budget is no decision

        def step(action: list[float]) -> None:
            walk.step(*action)
            objective.completed(walk)

        return step

    rates = {}
    for name, start in (("with observation", start_env), ("without", start_walk)):
        steps, spent = 0, 0.0
        for _ in rounds(f"decisions {name}", seconds / 2, 1, progress):
            problem.graph.forget()
            step = start()
            actions = rng.uniform(-1, 1, (objective.steps - 1, 2)).tolist()
            began = thread_time()
            for action in actions:
                step(action)
            spent += thread_time() - began
            steps += len(actions)
        rates[name] = steps / spent
    return rates


def plans(objective: Objective, seconds: float, rng: np.random.Generator, progress: bool) -> dict[str, float]:
    """Median seconds of a plan that random weights of the losses lead to, found alone and together with others."""
    allocator, times = objective.allocator, dict[str, list[float]](alone=[], together=[])
    limits = {"macs": random_budget(objective.problem, rng)["macs"] * objective.problem.cost_model.teacher["macs"]}
    reference = objective.reference(limits)
    for _ in rounds("plans", seconds / 2, 5, progress):
        weights = FACTOR ** rng.uniform(-1, 1, (TOGETHER, objective.steps))
        for name, own in (("alone", weights[:1]), ("together", weights)):
            began = thread_time()
            allocator.solve(reference, own)
            times[name].append((thread_time() - began) / len(own))
    return {name: median(own) for name, own in times.items()}


def random_budget(problem: Problem, rng: np.random.Generator) -> dict[str, float]:
    """A share of the MACs between a quarter and three quarters, or the least that can be reached."""
    least = problem.smallest("macs") / problem.cost_model.teacher["macs"]
    return {"macs": float(max(rng.uniform(*SHARES), least))}


def profile(objective: Objective, seconds: float, rng: np.random.Generator, progress: bool) -> dict[str, Any]:
    """Seconds a stage of whole random episodes, three at least, each with a plan of its own."""
    watch, episodes, env = CallTimer(), 0, LayerRemovalEnv.of(objective)
    with watch.timing(STAGES):
        for _ in rounds("episodes", seconds, 3, progress):
            objective.problem.graph.forget()
            env.reset(options={"budget": random_budget(objective.problem, rng)})
            done = False
            while not done:
                done = env.step(rng.uniform(-1, 1, 2))[2]
            episodes += 1
    stages = {name: watch.seconds.get(name, 0.0) / episodes for _, _, name in STAGES}
    total = sum(stages.values())
    evaluation = sum(stages[name] for name in EVALUATION)
    return {"episodes": episodes, "seconds": total, "stages": stages, "not_evaluation": 1 - evaluation / total}


class CallTimer:
    """Adds up the CPU seconds of functions, each without the timed ones that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # seconds of timed calls within each open one

    @contextmanager
    def timing(self, stages: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Time `(owner, attribute, name)`s within the block; functions of a module wherever this package has imported them."""
        with ExitStack() as undo:
            for owner, attribute, name in stages:
                function = getattr(owner, attribute)
                timed = self._timed(function, name)
                users = [module for key, module in sys.modules.items() if key.startswith("compress_env")]
                for each in users if isinstance(owner, ModuleType) else [owner]:
                    if getattr(each, attribute, None) is function:
                        setattr(each, attribute, timed)
                        undo.callback(setattr, each, attribute, function)
            yield

    def _timed(self, function: Callable, name: str) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = thread_time() - began
                self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
                self._inner[-1] += spent

        return timed


def building(problem: Problem, seconds: float, rng: np.random.Generator, progress: bool) -> dict[str, float]:
    """Median seconds of building a random student and of counting its usage, beside a forward pass of the teacher at batch 32."""
    module, graph = problem.teacher.module, problem.graph
    inputs = problem.data.calibration(32)
    inputs = inputs.repeat(-(-32 // len(inputs)), *[1] * (inputs.dim() - 1))[:32]
    times: dict[str, list[float]] = {"build": [], "count": [], "forward of 32": []}
    for _ in rounds("building", seconds / 2, 5, progress):
        removed = frozenset(name for name in graph.blocks if rng.random() < 0.5)
        plan = graph.canonical(removed, rng.integers(graph.floor, graph.full + 1))
        began = thread_time()
        student = build_student(module, graph, plan)
        times["build"].append(thread_time() - began)
        began = thread_time()
        problem.cost_model.count(student, plan)
        times["count"].append(thread_time() - began)
        with torch.inference_mode():
            began = thread_time()
            module(inputs)
            times["forward of 32"].append(thread_time() - began)
    return {name: median(own) for name, own in times.items()}


def peers(evaluator: Evaluator, seconds: float, rng: np.random.Generator, progress: bool) -> list[dict[str, Any]]:
    """Ways to one and the same candidate, of random widths at half the MACs: seconds until it can be judged, and its metric.

    Averages over five candidates; training anew takes too long for more than one.
    """
    problem = evaluator.problem
    plans = width_plans(problem, rng, 5)
    rows: list[dict[str, Any]] = []
    for way, make in (
        ("build", problem.student),
        ("build and refit", evaluator.prepared),
        ("deepcopy and torch-pruning", lambda plan: pruned(problem, plan)),
    ):
        spent, scores = [], []
        try:
            for plan in tqdm(plans, desc=way, leave=False, disable=not progress):
                began = thread_time()
                student = make(plan)
                spent.append(thread_time() - began)
                scores.append(judged(evaluator, student))
        except Exception as error:  # noqa: BLE001 - torch-pruning raises almost anything for networks it does not know
            if way != "deepcopy and torch-pruning":
                raise
            rows.append({"way": way, "failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
            continue
        rows.append({"way": way, "seconds": mean(spent), "metric": mean(scores)})
    return [*rows, trained_anew(evaluator, plans[0], seconds, progress)]


def width_plans(problem: Problem, rng: np.random.Generator, count: int) -> list[Plan]:
    """Plans that remove nothing, from random walks at half the MACs, or the least that widths alone can reach."""
    spec = replace(problem.spec, schedule="shrink")
    narrow = Problem(spec, problem.teacher, problem.task, problem.data, problem.measured, progress=False)
    limits = {"macs": max(0.5 * narrow.cost_model.teacher["macs"], narrow.smallest("macs"))}
    plans = []
    for _ in range(count):
        walk = Walk(narrow, limits)
        while not walk.done:
            walk.step(1.0, rng.uniform(-1, 1))
        plans.append(problem.graph.canonical(walk.removed, walk.widths))
    return plans


def judged(evaluator: Evaluator, student: nn.Module) -> float:
    """Main metric on the validation images that the evaluator takes."""
    task, validation = evaluator.task, evaluator.validation
    with channels_last(student):
        return task.metrics(predict(student, evaluator.problem.data, validation), validation.labels)[task.metric]


def pruned(problem: Problem, plan: Plan) -> nn.Module:
    """The same student by Torch-Pruning (Fang et al., CVPR 2023): its dependency graph finds what goes with a layer's channels."""
    model = copy.deepcopy(problem.teacher.module)
    dependencies = tp.DependencyGraph().build_dependency(model, problem.data.calibration(2), verbose=False)
    for name, width in plan.widths:
        group = problem.graph.groups[name]
        member = next(m for m in group.members if m.layer == group.layer and m.side == "out")
        lost = member.position[~group.kept(width)[member.channel]]
        layer = model.get_submodule(member.layer)
        function = dependencies.get_pruner_of_module(layer).prune_out_channels
        dependencies.get_pruning_group(layer, function, lost.tolist()).prune()
    expected = problem.graph.view(frozenset()).parameters(problem.graph.widths(plan))
    if sum(p.numel() for p in model.parameters()) != expected:
        raise ValueError("it ties other channels together than we do")
    return model


def trained_anew(evaluator: Evaluator, plan: Plan, seconds: float, progress: bool) -> dict[str, Any]:
    """The same student with random weights, trained on labels, as N2N learning did (Ashok et al., ICLR 2018): N2N_EPOCHS epochs.

    If those would take longer than `seconds`, it is one epoch, and the time is scaled; `epochs` says how many they were.
    """
    problem = evaluator.problem
    loss, data = problem.task.losses.get("labels"), problem.data
    for epochs in (1, N2N_EPOCHS):
        student = problem.student(plan)
        with seeded():
            for module in student.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        began = thread_time()
        fit(
            student, data, finetuning_recipe(len(data.train), epochs, next(student.parameters()).device),
            lambda logits, labels, *_: loss(logits, None, labels, 1.0), torch.Generator().manual_seed(0),
            progress="training anew" if progress else None,
        )  # fmt: skip
        spent = thread_time() - began
        if epochs == 1 and N2N_EPOCHS * spent > seconds:
            break
    scaled = spent * N2N_EPOCHS / epochs
    return {
        "way": f"random weights, {N2N_EPOCHS} epochs",
        "seconds": scaled,
        "metric": judged(evaluator, student),
        "epochs": epochs,
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a report."""
    yield f"{result['teacher']} on {result['data']}, {result['steps']} decisions an episode; CPU seconds of one thread"
    rates = result["decisions"]
    yield ""
    yield f"decisions a second    {rates['with observation']:,.0f} with the observation, {rates['without']:,.0f} without"
    each = {name: spent * 1e3 for name, spent in result["plans"].items()}
    yield f"a plan                {each['alone']:.2f} ms alone, {each['together']:.2f} ms of {TOGETHER} at once"
    profile, build = result["profile"], result["build"]
    yield ""
    yield f"{'an episode':20} {profile['seconds'] * 1e3:9.2f} ms      (mean of {profile['episodes']})"
    for name, spent in profile["stages"].items():
        yield f"  {name:18} {spent * 1e3:9.2f} ms {spent / profile['seconds']:7.1%}"
    yield f"  {'not evaluation':31} {profile['not_evaluation']:7.1%}"
    yield ""
    for name, spent in build.items():
        yield f"{name:20} {spent * 1e3:9.2f} ms {spent / build['forward of 32']:7.2f} of a forward pass at batch 32"
    yield ""
    yield f"{'a candidate by':28} {'seconds':>9} {'metric':>9}   right after, on validation images"
    for row in result["peers"]:
        if "failed" in row:
            yield f"{row['way']:28} failed: {row['failed']}"
        else:
            scaled = row.get("epochs", N2N_EPOCHS) < N2N_EPOCHS
            note = f"   after {row['epochs']} epoch; its time is scaled" if scaled else ""
            yield f"{row['way']:28} {row['seconds']:9.4f} {row['metric']:9.2%}{note}"
