"""Pruners of torch-pruning, brought to a number of MACs or to a measured time."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.limits import Bound
from compress_env.errors import InfeasibleBudget
from compress_env.problem import Problem
from compress_env.surgery.layout import channels_last, in_layout
from compress_env.surgery.rules import rule_of

History = Sequence[tuple[str, bool, Sequence[int]]]
"""What torch-pruning took away, as it writes it: a layer, whether its outputs go, and their indices."""


@dataclass(frozen=True)
class Pruner:
    """A way of torch-pruning to say how much a channel matters.

    Attributes:
        importance: Makes its measure.
        everywhere: Whether channels of several layers compete (global pruning); else each layer loses the same share.
        gradients: Whether those of the loss are needed.
        isomorphic: Whether only layers of the same kind and place in the network compete (Fang et al., ECCV 2024).
    """

    importance: Callable[[], tp.importance.Importance]
    everywhere: bool
    gradients: bool = False
    isomorphic: bool = False


PRUNERS = {
    "magnitude-uniform": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=False),
    "magnitude-global": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=True),
    "magnitude-isomorphic": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=True, isomorphic=True),
    "taylor-uniform": Pruner(tp.importance.GroupTaylorImportance, everywhere=False, gradients=True),
    "taylor-global": Pruner(tp.importance.GroupTaylorImportance, everywhere=True, gradients=True),
    "taylor-isomorphic": Pruner(tp.importance.GroupTaylorImportance, everywhere=True, gradients=True, isomorphic=True),
    "bn-scale-uniform": Pruner(tp.importance.BNScaleImportance, everywhere=False),
    "bn-scale-global": Pruner(tp.importance.BNScaleImportance, everywhere=True),
}
STEPS = 10
"""Steps in which a pruner reaches its ratio; importance, and gradients for those that need them, are computed anew before each. In one
step, global pruners leave a layer whole that they would have to empty."""
HALVINGS, CLOSE = 8, 0.005
"""Of the interval of ratios, at most; they end with a student that is below the limit by at most this share of the teacher."""
IMAGES = 256
"""Training images whose gradients the Taylor pruners see before each step."""


class _Pruner(tp.pruner.BasePruner):
    """torch-pruning's, in which widths that are to be multiples are the next larger ones.

    Its own rounding takes the next smaller ones, so that a layer loses a whole multiple with the first channel that goes in any step,
    and nothing where no channel would be left.
    """

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        left = max(1, math.ceil((current_channels - n_pruned) / round_to)) * round_to
        return max(0, current_channels - left)


def classifier(problem: Problem) -> list[str]:
    """Names of the layers that give the network's outputs, the first ones with weights on the way back from its end."""
    nodes = {node.name: node for node in problem.graph.fx_graph.nodes}
    waiting, found, seen = [nodes[problem.graph.output]], [], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and rule_of(problem.teacher.module.get_submodule(node.target)).produces:
            found.append(node.target)
        else:
            waiting += node.all_input_nodes
    return found


def gradients(problem: Problem, model: nn.Module) -> None:
    """Give a network the gradients of its cross-entropy on training images, as it is (normalisation by its own statistics)."""
    model.zero_grad(set_to_none=True)
    few = problem.data.train.take(slice(IMAGES))
    with channels_last(model):
        for inputs, labels in zip(few.inputs[:].split(128), few.labels.split(128)):
            outputs = model(in_layout(model, problem.data.prepare(inputs)))
            (cross_entropy(outputs, labels, reduction="sum") / len(few)).backward()


def pruned(problem: Problem, pruner: Pruner, ratio: float, multiple: int = 1) -> tuple[nn.Module, History]:
    """A copy of the teacher with a share of its channels pruned, but not the outputs of its classifier, and what was taken away.

    Args:
        problem: It has the teacher and the data.
        pruner: The way.
        ratio: The share that goes.
        multiple: What the widths are multiples of.
    """
    model = copy.deepcopy(problem.teacher.module).requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = _Pruner(
            model, problem.data.calibration(2), pruner.importance(), global_pruning=pruner.everywhere, pruning_ratio=ratio,
            iterative_steps=STEPS, isomorphic=pruner.isomorphic, round_to=multiple if multiple > 1 else None,
            ignored_layers=[model.get_submodule(name) for name in classifier(problem)],
            in_channel_groups={}, out_channel_groups={}, num_heads={},  # its defaults are shared and grow with each model
        )  # fmt: skip
        for _ in range(STEPS):
            if pruner.gradients:
                gradients(problem, model)
            agent.step()
    model.zero_grad(set_to_none=True)
    return model, [(name, out, [int(i) for i in indices]) for name, out, indices in agent.pruning_history()]


def repeated(problem: Problem, history: History) -> nn.Module:
    """The student of which something was taken away before."""
    model = copy.deepcopy(problem.teacher.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=problem.data.calibration(2))
        graph.load_pruning_history(history)
    return model


class TooMuch(Exception):
    """What a pruner raises for a ratio that would empty the network."""


def halved(bound: Bound, prune: Callable[[float], tuple[nn.Module, History]]) -> tuple[nn.Module, float, History]:
    """The largest student within a limit that halving the interval of ratios finds, its ratio, and what was taken away.

    Args:
        bound: The limit.
        prune: Gives the student of a ratio between 0 and 1 and what was taken away; it may raise `TooMuch`.

    Raises:
        InfeasibleBudget: If there is none.
    """
    example = bound.problem.data.calibration(2)
    known: dict[tuple, float] = {}
    low, high, best, used = 0.0, 1.0, None, math.nan
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        try:
            model, history = prune(ratio)
        except TooMuch:
            high = ratio
            continue
        with torch.no_grad():
            shape = tuple(model(example).shape)
        if shape != (len(example), bound.problem.data.outputs):
            raise RuntimeError(f"the pruned network answers with {shape[1:]} instead of {bound.problem.data.outputs} classes")
        shapes = tuple(tuple(p.shape) for p in model.parameters())
        if shapes not in known:  # widths alone decide what a student uses, and no width is measured twice
            known[shapes] = bound.used(model)
        used = known[shapes]
        if used > bound.share:
            low = ratio
        else:
            high = ratio
            if best is None or used > best[0]:
                best = (used, model, ratio, history)
            if used >= bound.share - CLOSE:
                break
    if best is None:
        raise InfeasibleBudget(f"even a ratio of {low:.4f} leaves {used:.1%} of the {bound.resource}, more than {bound.share:.1%}")
    return best[1:]


def shrunk(pruner: Pruner, bound: Bound) -> tuple[nn.Module, float, History]:
    """As `halved`, of a pruner of torch-pruning."""
    return halved(bound, lambda ratio: pruned(bound.problem, pruner, ratio, bound.multiple))
