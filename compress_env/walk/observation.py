"""The layer embedding: what the agent sees at a step, as bounded and normalised numbers."""

from __future__ import annotations

import math

import numpy as np

from compress_env.decisions import Decision
from compress_env.problem import Problem
from compress_env.resources import BUILT_IN
from compress_env.surgery.ir import Layer
from compress_env.walk.walk import Walk

LAYER: tuple[tuple[str, float, str], ...] = (
    ("pass", 0, "0 while layers are removed, 1 while they are shrunk"),
    ("progress", 0, "steps taken / steps of the episode"),
    ("inactive", 0, "1 if the target went with a block that was removed before; the action then has no effect"),
    ("convolution", 0, "share of the target's layers that are dense convolutions"),
    ("depthwise", 0, "share that are depthwise or grouped convolutions"),
    ("linear", 0, "share that are linear layers"),
    ("branch", 0, "1 if the target is a residual branch, or lies within one; 0 if all that comes after depends on it"),
    ("redundancy", 0, "the share of a block's output that is known without it; of a group, the share that half its channels explain"),
    ("index", 0, "position of the target's first layer in the network"),
    ("channels in", 0, "log2(1 + channels into the first layer) / 12"),
    ("channels out", 0, "log2(1 + channels out of the last layer) / 12"),
    ("kernel", 0, "largest kernel size / 7, at most 1"),
    ("stride", 0, "log2 of the largest stride / 3, at most 1"),
    ("groups", 0, "log2(groups) / 12 of the layer with most"),
    ("spatial size in", 0, "log2(1 + positions per channel into the first layer) / 20"),
    ("spatial size out", 0, "log2(1 + positions per channel out of the last layer) / 20"),
    ("share of MACs", 0, "the target's MACs / the teacher's"),
    ("share of params", 0, "the target's parameters / the teacher's"),
    ("removed so far", 0, "share of the teacher's MACs saved by the decisions taken"),
    ("left to decide", 0, "share of the teacher's MACs in layers that are still undecided"),
    ("uniform keep ratio", 0, "share of channels that all undecided groups could keep together; sparsity 0 gives it"),
    ("previous keep", -1, "the last removal as executed: -1 removed, 1 kept, 0 if the last step was none"),
    ("previous sparsity", -1, "the last sparsity as executed, after the clamp"),
)
"""Name, minimum and meaning of what is known of the step; the maximum is 1."""


def observed(problem: Problem) -> tuple[str, ...]:
    """Names of the resources that are observed: those that come with this package, and those of the user's that the problem counts."""
    return (*BUILT_IN, *(name for name in problem.cost_model.names if name not in BUILT_IN))


def entries(resources: tuple[str, ...] = BUILT_IN) -> tuple[tuple[str, float, str], ...]:
    """Name, minimum and meaning of each entry of an observation, with two for each resource."""
    return (
        *LAYER,
        *((f"budget {n}", 0, f"limit on {n} as a share of the teacher's, at most 1; 1 if there is none") for n in resources),
        *((f"spent {n}", 0, f"{n} if undecided layers stay whole / 4 times the limit; 0 if there is none") for n in resources),
    )


def entries_table() -> str:
    """Markdown, a line an entry, for the environment's documentation."""
    lines = [f"    | {i} | {name} | {low} | 1 | {meaning} |" for i, (name, low, meaning) in enumerate(entries())]
    return "\n".join(["    | Num | Observation | Min | Max | Meaning |", "    |-----|-------------|-----|-----|---------|", *lines])


class Embedding:
    """Observations for one problem; everything that does not change over a walk is computed once.

    Args:
        problem: The problem. Its redundancy is measured on images, unless that was done before.

    Attributes:
        names: Names of the entries.
        low: Smallest values `(entries,)`, float32.
        high: Largest values `(entries,)`, float32.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self._resources = observed(problem)
        every = entries(self._resources)
        self.names = tuple(name for name, _, _ in every)
        self.low = np.array([low for _, low, _ in every], np.float32)
        self.high = np.ones(len(self.low), np.float32)
        graph = problem.graph
        whole = graph.view(frozenset())
        self._macs = dict.fromkeys(graph.layers, 0.0) | whole.layer_macs(graph.full)
        self._params = whole.layer_parameters(graph.full)
        self._total = sum(self._macs.values()) or 1.0
        self._position = {name: i / max(1, len(graph.layers) - 1) for i, name in enumerate(graph.layers)}
        self._layers = {d: d.layers(graph) for d in problem.decisions}
        self._place = {name: i for i, name in enumerate(self.names)}
        self._templates = np.array([self._template(i) for i in range(len(problem.decisions) + 1)], np.float32)

    def _branched(self, decision: Decision) -> bool:
        """Whether the network has a way round the target."""
        blocks = self.problem.graph.blocks
        if not decision.shrinks:
            return blocks[decision.target].kind == "branch"
        own = {layer.name for layer in self._layers[decision]}
        return any(block.kind == "branch" and own <= set(block.layers) for block in blocks.values())

    def _describe(self, decision: Decision) -> list[float]:
        layers: list[Layer] = self._layers[decision]
        known = self.problem.ranking.explained if decision.shrinks else self.problem.redundancy
        first, last = layers[0], layers[-1]
        share = [sum(layer.kind in kinds for layer in layers) / len(layers) for kinds in
                 (("conv",), ("depthwise", "grouped"), ("linear",))]  # fmt: skip
        return [
            *share,
            float(self._branched(decision)),
            known.get(decision.target, 0.0),
            self._position[first.name],
            math.log2(1 + first.channels_in) / 12,
            math.log2(1 + last.channels_out) / 12,
            max(x.kernel_size for x in layers) / 7,
            math.log2(max(max(x.stride for x in layers), 1)) / 3,
            math.log2(max(max(x.groups for x in layers), 1)) / 12,
            math.log2(1 + first.positions_in) / 20,
            math.log2(1 + last.positions) / 20,
            sum(self._macs[x.name] for x in layers) / self._total,
            sum(self._params[x.name] for x in layers) / self.problem.cost_model.teacher["params"],
        ]

    def _template(self, step: int) -> np.ndarray:
        """What is known of a step beforehand; at the end, of the last one."""
        steps = self.problem.decisions
        decision = steps[min(step, len(steps) - 1)]
        undecided = {layer.name for d in steps[step:] for layer in self._layers[d]}
        known = [float(decision.shrinks), step / len(steps), 0.0, *self._describe(decision), 0.0,
                 sum(self._macs[name] for name in undecided) / self._total]  # fmt: skip
        vector = np.zeros(len(self.low))
        vector[: len(known)] = known
        for name in self._resources:
            vector[self._place[f"budget {name}"]] = 1.0
        return np.clip(vector, self.low, self.high)

    def __call__(self, walk: Walk) -> np.ndarray:
        """The vector `(entries,)` float32 for the current step; at the end, that of the last one with progress 1."""
        cost_model, place, view = self.problem.cost_model, self._place, walk.view
        vector = self._templates[walk.step_index].copy()
        macs = cost_model.predict("macs", view, walk.widths)
        vector[place["removed so far"]] = min(max(1 - macs / cost_model.teacher["macs"], 0.0), 1.0)
        if not walk.done:
            vector[place["inactive"]] = walk.current.inactive(walk)
            vector[place["uniform keep ratio"]] = walk.uniform_keep_ratio()
        keep = place["previous keep"]
        vector[keep], vector[keep + 1] = walk.previous
        for name, limit in walk.limits.items():
            used = macs if name == "macs" else cost_model.predict(name, view, walk.widths)
            vector[place[f"budget {name}"]] = min(limit / cost_model.teacher[name], 1.0)
            vector[place[f"spent {name}"]] = min(used / limit / 4, 1.0)
        return vector
