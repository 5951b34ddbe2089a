"""Pruners of torch-pruning, brought to a number of MACs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import nn
from torch.nn.functional import cross_entropy

from compress_env.errors import InfeasibleBudget
from compress_env.problem import Problem
from compress_env.resources.macs import Macs
from compress_env.surgery.rules import rule_of


@dataclass(frozen=True)
class Pruner:
    """A way of torch-pruning to say how much a channel matters.

    Attributes:
        importance: Makes its measure.
        everywhere: Whether channels of all layers compete (global pruning); else each layer loses the same share.
        gradients: Whether those of the loss are needed.
    """

    importance: Callable[[], tp.importance.Importance]
    everywhere: bool
    gradients: bool = False


PRUNERS = {
    "magnitude-uniform": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=False),
    "magnitude-global": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=True),
    "taylor-uniform": Pruner(tp.importance.GroupTaylorImportance, everywhere=False, gradients=True),
    "taylor-global": Pruner(tp.importance.GroupTaylorImportance, everywhere=True, gradients=True),
    "bn-scale-uniform": Pruner(tp.importance.BNScaleImportance, everywhere=False),
    "bn-scale-global": Pruner(tp.importance.BNScaleImportance, everywhere=True),
}
STEPS = 10
"""Steps in which a pruner reaches its ratio; magnitudes are looked at anew before each, gradients are taken once. In one step, global
pruners leave a layer whole that they would have to empty."""
HALVINGS = 20
IMAGES = 2048
"""Training images whose gradients the Taylor pruners see."""


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


def gradients(problem: Problem) -> dict[str, torch.Tensor]:
    """Gradients of the teacher's cross-entropy on training images, as it is (normalisation by its own statistics)."""
    model = copy.deepcopy(problem.teacher.module).requires_grad_(True)
    few = problem.data.train.take(slice(IMAGES))
    for inputs, labels in zip(few.inputs.split(256), few.labels.split(256)):
        (cross_entropy(model(problem.data.prepare(inputs)), labels, reduction="sum") / len(few)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def pruned(
    problem: Problem, pruner: Pruner, ratio: float, slopes: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """A copy of the teacher with a share of its channels pruned, but not the outputs of its classifier.

    Args:
        problem: It has the teacher and the data.
        pruner: The way.
        ratio: The share that goes.
        slopes: The teacher's `gradients`, where the pruner needs them.
    """
    model = copy.deepcopy(problem.teacher.module).requires_grad_(True)
    for name, p in model.named_parameters():
        p.grad = slopes[name].clone() if slopes and name in slopes else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = tp.pruner.BasePruner(
            model, problem.data.calibration(2), pruner.importance(), global_pruning=pruner.everywhere, pruning_ratio=ratio,
            iterative_steps=STEPS, ignored_layers=[model.get_submodule(name) for name in classifier(problem)],
            in_channel_groups={}, out_channel_groups={}, num_heads={},  # its defaults are shared and grow with each model
        )  # fmt: skip
        for _ in range(STEPS):
            agent.step()
    model.zero_grad(set_to_none=True)
    return model


def shrunk(problem: Problem, pruner: Pruner, limit: float) -> tuple[nn.Module, float]:
    """The largest student of a pruner within `limit` MACs that halving the interval of ratios finds, and its ratio.

    Raises InfeasibleBudget if there is none, and whatever torch-pruning raises.
    """
    slopes = gradients(problem) if pruner.gradients else None
    example = problem.data.calibration(2)
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        model = pruned(problem, pruner, ratio, slopes)
        with torch.no_grad():
            shape = tuple(model(example).shape)
        if shape != (len(example), problem.data.outputs):
            raise RuntimeError(f"the pruned network answers with {shape[1:]} instead of {problem.data.outputs} classes")
        used = Macs().count(model, example[:1])
        if used > limit:
            low = ratio
        else:
            high = ratio
            if best is None or used > best[0]:
                best = (used, model, ratio)
    if best is None:
        raise InfeasibleBudget(f"even a ratio of {low:.4f} leaves {used:,.0f} MACs, more than {limit:,.0f}")
    return best[1], best[2]


