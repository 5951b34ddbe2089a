"""Scores of the plans whose truths are known, by every way of judging them; what was scored before is read from a file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from compress_env.bench.fidelity import Truth, Views, draw
from compress_env.contexts import one_thread
from compress_env.distill.evaluator import EvaluationFailed, Evaluator, EvaluatorSettings, divergence
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import channels_last, fit, predict
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.tasks.classification import accuracy
from compress_env.tasks.classification.losses import LOSSES

DEFAULT = "default"
BY_WEIGHTS = "channels by weights"
EVALUATORS: dict[str, dict] = {
    DEFAULT: {},
    BY_WEIGHTS: {},
    "sliced": {"refit": False},
    "refit on 512 images, 1,000 judge": {"calibration_images": 512, "validation_images": 1000},
    "refit, 10 steps": {"distill_steps": 10},
}
"""Settings of each way to judge; of each the score, the KL to the teacher and the accuracy are looked at. BY_WEIGHTS keeps the
channels with the largest weights."""
TIMED = 3
"""Plans a budget on which steps of distillation are timed, beside the evaluators and in the same process."""


@dataclass(frozen=True)
class Score:
    """What an evaluator said of a plan: accuracy and agreement with the teacher's answers in [0, 1], KL to it in nats; its seconds
    of processor time, from the built student to the score."""

    evaluator: str
    settings: dict
    budget: float
    index: int
    accuracy: float
    agreement: float
    kl: float
    seconds: float


def score(
    env: LayerRemovalEnv, truths: Sequence[Truth], path: Path, evaluators: Mapping[str, dict] = EVALUATORS, progress: bool = True
) -> list[Score]:  # fmt: skip
    """Scores of all truths' plans by all `evaluators`; rows are appended to `path`, and rows with the same settings used again."""
    wanted = {name: asdict(EvaluatorSettings(**settings)) for name, settings in evaluators.items()}
    known = [Score(**json.loads(line)) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    plans = {(t.budget, t.index): Plan.from_json(t.plan) for t in truths}
    known = [s for s in known if wanted.get(s.evaluator) == s.settings and (s.budget, s.index) in plans]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(s)) + "\n" for s in known))
    done = {(s.evaluator, s.budget, s.index) for s in known}
    todo = [(name, *key) for name in wanted for key in plans if (name, *key) not in done]
    current, evaluator, graph = None, None, env.graph
    for name, budget, index in tqdm(todo, desc="scoring", unit="plan", disable=not progress):
        if name != current:
            current = name
            graph = _by_weights(env) if name == BY_WEIGHTS else env.graph
            evaluator = Evaluator(env.whole, graph, env.data, EvaluatorSettings(**evaluators[name]))
        student = build_student(env.teacher.module, graph, plans[budget, index]).to(env.device)
        found = _score(evaluator, student, name, budget, index, plans[budget, index])
        with path.open("a") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        known.append(found)
    return known


def _by_weights(env: LayerRemovalEnv) -> LayerGraph:
    """The environment's graph as it is without images."""
    return trace(env.teacher.module, env.data.calibration(2))


def _score(evaluator: Evaluator, student, name: str, budget: float, index: int, plan: Plan) -> Score:
    began = time.process_time()
    try:
        logits = evaluator.logits(student, plan)
    except EvaluationFailed:
        logits = torch.zeros_like(evaluator.teacher_logits)
    seconds = time.process_time() - began
    target = evaluator.teacher_logits
    return Score(
        name, asdict(evaluator.settings), budget, index, accuracy(logits, evaluator.validation.labels),
        accuracy(logits, target.argmax(1)), divergence(logits, target), seconds,
    )  # fmt: skip


def sizes(env: LayerRemovalEnv, truths: Sequence[Truth]) -> dict[str, float]:
    """Each plan's share of the teacher's parameters."""
    found = {}
    for truth in truths:
        plan = Plan.from_json(truth.plan)
        network, widths = env.graph.view(frozenset(plan.removed)), env.graph.widths(plan)
        found[truth.plan] = env.cost_model.predict("params", network, widths) / env.cost_model.teacher["params"]
    return found


def distillation_seconds(
    env: LayerRemovalEnv, truths: Sequence[Truth], settings: Mapping, steps: int = 10
) -> dict[float, float]:
    """Processor seconds of distilling one plan as the truths were, for each budget, extrapolated from `steps` steps on a few plans.

    Measured beside the evaluators, since the truths' own seconds may come from a busy machine or from another one.
    """
    recipe = Recipe(**settings["recipe"] | {"steps": steps + 2})
    few = env.data.head((steps + 2) * recipe.batch_size)
    function = LOSSES.get(settings["loss"])
    found = {}
    with one_thread():
        views = Views(env.whole, few, 1, recipe, settings["seed"])
        for budget in dict.fromkeys(t.budget for t in truths):
            chosen = [t for t in truths if t.budget == budget][:TIMED]
            seconds = []
            for truth in chosen:
                student = env.student(Plan.from_json(truth.plan))
                stamps = []

                def objective(logits, labels, _inputs, rows, stamps=stamps):
                    stamps.append(time.process_time())
                    return function(logits, views.logits[rows].to(logits.device), labels, settings["temperature"])

                fit(student, views.data, views.recipe, objective, torch.Generator().manual_seed(0))
                seconds.append((stamps[-1] - stamps[1]) / (len(stamps) - 2) * truth.steps)
            found[budget] = float(np.mean(seconds))
    return found


def training_free(
    env: LayerRemovalEnv, seed: int, budget: float = 0.5, count: int = 100
) -> dict[str, tuple[float, float]]:
    """Students of random plans without any training: refitted ("refit"), and the channels with the largest weights ("magnitude").

    For each the accuracies in [0, 1] of the plan that is best on validation images, on validation and on test images; and those of
    the teacher.
    """
    data, whole = env.data, env.whole
    plans = draw(env, budget, count, seed)
    with one_thread(), channels_last(whole):
        found = {"teacher": _accuracies(whole, data)}
    for name, graph, settings in (("refit", env.graph, {}), ("magnitude", _by_weights(env), {"refit": False})):
        evaluator = Evaluator(whole, graph, data, EvaluatorSettings(**settings))
        scored = [
            (evaluator(build_student(env.teacher.module, graph, p).to(env.device), p).accuracy, p)
            for p in tqdm(plans, desc=name, leave=False)
        ]
        plan = max(scored, key=lambda pair: pair[0])[1]
        student = build_student(env.teacher.module, graph, plan).to(env.device)
        evaluator.prepare(student, plan)
        with one_thread(), channels_last(student):
            found[name] = _accuracies(student, data)
    return found


def _accuracies(module, data) -> tuple[float, float]:
    return tuple(accuracy(predict(module, data, s), s.labels) for s in (data.validation, data.test))
