"""A student that shrinks to its plan in steps and is distilled after each: pruning and training in turn (Han et al., NeurIPS 2015)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import fx

from compress_env.contexts import one_thread
from compress_env.errors import UserError
from compress_env.problem import Problem
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.layout import channels_last, in_layout
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking import rank_channels
from compress_env.surgery.refit import Refit
from compress_env.surgery.trace import trace


def steps(problem: Problem, plan: Plan, cycles: int) -> list[Plan]:
    """Plans from the teacher to `plan`, which is the last of them, each a part of the one before.

    The first one removes all blocks that go. Widths shrink by the same factor each time, so that three cycles to an eighth of the
    multiply-accumulates pass about a half and a quarter of them.

    Args:
        problem: The plan is one of its graph.
        plan: The end.
        cycles: How many plans.
    """
    graph, least = problem.graph, problem.graph.widths(plan)
    between = [np.ceil(graph.full * (least / graph.full) ** (i / cycles)) for i in range(1, cycles)]
    return [*(graph.canonical(plan.switched, np.maximum(least, graph.allowed(widths))) for widths in between), plan]


def shares(epochs: int, cycles: int) -> list[int]:
    """Epochs of each cycle: the same number, and what is left over for the last."""
    each = epochs // cycles
    return [each] * (cycles - 1) + [epochs - each * (cycles - 1)]


def check(problem: Problem, plan: Plan, cycles: int) -> None:
    """See before any training whether students can shrink on the way to a plan. Raises UserError if they cannot."""
    first, *further = steps(problem, plan, cycles)
    student = problem.student(first)
    for smaller in further:
        student = shrunk(problem, student, smaller, calibration_images=0)


def shrunk(problem: Problem, student: fx.GraphModule, plan: Plan, calibration_images: int) -> fx.GraphModule:
    """The student of a smaller plan, made of a larger student as that was made of the teacher: channels ranked, cut and refitted.

    Args:
        problem: The plan is one of its graph.
        student: Of a plan that this one is a part of; it is not changed.
        plan: The smaller plan.
        calibration_images: Training images for ranking and refit; with 0, the student is only cut, which takes a moment.

    Raises:
        UserError: If the larger student cannot be cut so.
    """
    larger = copy.deepcopy(student).cpu()
    graph = trace(larger, problem.example(2), min_width=1e-9)
    step = _step(problem, graph, plan)
    if not calibration_images:
        return _as_planned(problem, build_student(larger, graph, step), plan)
    with one_thread():
        whole = build_student(larger, graph, Plan()).to(problem.device)
        with channels_last(whole):
            inputs = in_layout(whole, problem.data.calibration(calibration_images).to(problem.device))
            graph = graph.ranked(rank_channels(problem.spec.ranking, whole, graph, lambda: inputs))
            refit = Refit(whole, graph, inputs, bfloat16=problem.bfloat16)
        smaller = build_student(larger, graph, step).to(problem.device)
        with channels_last(smaller):
            refit(smaller, step)
    return _as_planned(problem, smaller, plan)


def _step(problem: Problem, graph: LayerGraph, plan: Plan) -> Plan:
    """The plan as one of the graph of a larger student, whose groups may have other names: those of layers that are still there."""
    widths = dict(zip(problem.graph.groups, problem.graph.widths(plan)))
    owner = {(m.layer, m.side): name for name, group in problem.graph.groups.items() for m in group.members}
    wanted = {}
    for name, group in graph.groups.items():
        wanted[name] = next((int(widths[owner[m.layer, m.side]]) for m in group.members if (m.layer, m.side) in owner), group.size)
    return graph.canonical(frozenset(), wanted)


def _as_planned(problem: Problem, found: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """The student of a plan with the weights of one that was made in another way. Raises UserError if that computes something else."""
    student, inputs = problem.student(plan), problem.example(2).to(problem.device)
    found = found.to(problem.device)
    try:
        student.load_state_dict(found.state_dict())
        with torch.no_grad():
            same = torch.allclose(student(inputs), found(inputs), rtol=1e-3, atol=1e-4)
    except RuntimeError:  # of other shapes
        same = False
    if not same:
        raise UserError(f"students of {problem.teacher.name!r} cannot be cut a second time; leave --cycles at 1")
    return student
