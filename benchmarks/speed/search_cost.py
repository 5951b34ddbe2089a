"""The cost of a whole search beside training its teacher, on the same machine in the same run."""

from __future__ import annotations

from dataclasses import replace
from time import thread_time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compress_env.contexts import one_thread, seeded
from compress_env.distill.train import fit
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.search.run import search
from compress_env.teachers import TEACHERS, ShippedTeacher

STEPS = 30
"""Of the teacher's training, timed after two others; the rest are the same."""


def search_cost(objective: Objective, agent: str, evaluations: int, seed: int, progress: bool) -> dict[str, Any] | None:
    """CPU seconds of one thread for a search and for the shipped teacher's own training.

    The search is done in full; of the training, a few steps are, and the time is scaled to its recipe without the share that goes into
    validation.

    Args:
        objective: Of the search.
        agent: Its agent.
        evaluations: Its length.
        seed: Of both.
        progress: Whether to show how far it is.

    Returns:
        The seconds, or None for a teacher whose recipe is not known.
    """
    problem = objective.problem
    if problem.teacher.name not in TEACHERS.names():
        return None
    shipped = TEACHERS.get(problem.teacher.name)
    epoch = len(problem.data.train) // shipped.recipe.batch_size
    with one_thread():
        training = _step(problem, shipped, seed) * shipped.recipe.epochs * epoch
        began = thread_time()
        search(objective, agent, evaluations, seed, progress=progress)
        spent = thread_time() - began
    return {"agent": agent, "evaluations": evaluations, "search": spent, "training": training}


def _step(problem: Problem, shipped: ShippedTeacher, seed: int) -> float:
    """Seconds of one step of the teacher's training."""
    stamps: list[float] = []

    def loss(logits: Tensor, labels: Tensor, *_: Tensor) -> Tensor:
        stamps.append(thread_time())
        return cross_entropy(logits, labels)

    with seeded(seed):
        model = shipped.factory()
    fit(model, problem.data, replace(shipped.recipe, steps=STEPS + 2), loss, torch.Generator().manual_seed(seed))
    return (stamps[-1] - stamps[1]) / STEPS


def line(cost: dict[str, Any] | None) -> str:
    """For the report."""
    if cost is None:
        return "search beside training: how this teacher was trained is not known"
    share = cost["search"] / cost["training"]
    return (
        f"a search of {cost['evaluations']} evaluations with {cost['agent']} takes {cost['search']:,.1f} s, "
        f"training the teacher {cost['training']:,.0f} s: {share:.1%}"
    )
