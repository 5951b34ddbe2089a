"""What a whole search costs beside training its teacher, on the same machine in the same run."""

from __future__ import annotations

from dataclasses import replace
from time import thread_time
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from compress_env.contexts import one_thread
from compress_env.distill.train import fit
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.search.run import search
from compress_env.teachers import TEACHERS

STEPS = 30
"""Of the teacher's training, timed after two others; the rest are the same."""


def search_cost(env: LayerRemovalEnv, agent: str, evaluations: int, seed: int, progress: bool) -> dict[str, Any] | None:
    """CPU seconds of one thread for a search with this many evaluations and for the shipped teacher's own training.

    The search is done in full; of the training, a few steps are, and the time is scaled to its recipe without what it spends on
    validation. None for a teacher whose recipe is not known.
    """
    if env.teacher.name not in TEACHERS.names():
        return None
    shipped = TEACHERS.get(env.teacher.name)
    with one_thread():
        training = (
            _step(env, shipped, seed) * shipped.recipe.epochs * (len(env.data.train) // shipped.recipe.batch_size)
        )
        began = thread_time()
        search(env, agent, evaluations, seed, progress=progress)
        spent = thread_time() - began
    return {"agent": agent, "evaluations": evaluations, "search": spent, "training": training}


def _step(env: LayerRemovalEnv, shipped, seed: int) -> float:
    """Seconds of one step of the teacher's training."""
    stamps = []

    def objective(logits, labels, *_):
        stamps.append(thread_time())
        return cross_entropy(logits, labels)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = shipped.factory()
    fit(model, env.data, replace(shipped.recipe, steps=STEPS + 2), objective, torch.Generator().manual_seed(seed))
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
