"""The layer embedding: what the agent sees at a step, as bounded and normalised numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from compress_env.resources import BUILT_IN
from compress_env.walk.walk import Decision, Walk

LAYER: tuple[tuple[str, float, str], ...] = (
    ("pass", 0, "0 while layers are removed, 1 while they are shrunk"),
    ("progress", 0, "steps taken / steps of the episode"),
    ("void", 0, "1 if the layer went with a block that was removed before; the action then has no effect"),
    ("convolution", 0, "share of the target's layers that are dense convolutions"),
    ("depthwise", 0, "share that are depthwise or grouped convolutions"),
    ("linear", 0, "share that are linear layers"),
    ("branch", 0, "1 if the target is a residual branch, or lies within one; 0 if all that comes after depends on it"),
    (
        "explained",
        0,
        "of what a block puts out, the share that is known without it; of a group, what half of its channels tell",
    ),
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


def entries(resources: Collection[str] = ()) -> tuple[tuple[str, float, str], ...]:
    """Name, minimum and meaning of each entry, two for each resource that comes with the package and each of `resources`."""
    names = sorted({*BUILT_IN, *resources})
    return (
        *LAYER,
        *(
            (f"budget {n}", 0, f"limit on {n} as a share of the teacher's, at most 1; 1 if there is none")
            for n in names
        ),
        *(
            (f"spent {n}", 0, f"{n} if undecided layers stay whole / 4 times the limit; 0 if there is none")
            for n in names
        ),
    )


class Embedding:
    """Observations for one problem; what does not change over an episode is computed once."""

    def __init__(self, problem, explained: Mapping[str, Mapping[str, float]]):
        """explained: the entry of that name for blocks ("remove") and groups ("shrink"), 0 for those that it lacks."""
        self.problem, self._explained = problem, explained
        every = entries(problem.cost_model.names)
        self.low = np.array([low for _, low, _ in every], np.float32)
        self.high = np.ones(len(self.low), np.float32)
        self._resources = [name.removeprefix("budget ") for name, _, _ in every if name.startswith("budget ")]
        graph = problem.graph
        whole = graph.view(frozenset())
        self._macs = dict.fromkeys(graph.layers, 0.0) | whole.layer_macs(graph.full)
        self._params = whole.layer_parameters(graph.full)
        self._total = sum(self._macs.values()) or 1.0
        params = problem.cost_model.teacher["params"]
        self._position = {name: i / max(1, len(graph.layers) - 1) for i, name in enumerate(graph.layers)}
        self._layers = {d: self._target_layers(d) for d in problem.decisions}
        self._place = {name: i for i, (name, _, _) in enumerate(every)}
        self._templates = np.array([self._template(i, params) for i in range(len(problem.decisions) + 1)], np.float32)

    def _target_layers(self, decision: Decision) -> list:
        graph = self.problem.graph
        names = graph.blocks[decision.target].layers if decision.kind == "remove" else [
            m.layer for m in graph.groups[decision.target].members if m.side == "out"
        ]  # fmt: skip
        layers = {graph.layer_of(n).name: graph.layer_of(n) for n in names}
        return [x for x in layers.values() if x.kind not in ("norm", "parameter")]

    def _branched(self, decision: Decision) -> bool:
        """Whether the network has a way round the target."""
        blocks = self.problem.graph.blocks
        if decision.kind == "remove":
            return blocks[decision.target].kind == "branch"
        own = {layer.name for layer in self._layers[decision]}
        return any(block.kind == "branch" and own <= set(block.layers) for block in blocks.values())

    def _describe(self, decision: Decision, params: float) -> list[float]:
        layers = self._layers[decision]
        first, last = layers[0], layers[-1]
        share = [sum(layer.kind in kinds for layer in layers) / len(layers) for kinds in
                 (("conv",), ("depthwise", "grouped"), ("linear",))]  # fmt: skip
        return [
            *share,
            float(self._branched(decision)),
            self._explained[decision.kind].get(decision.target, 0.0),
            self._position[first.name],
            math.log2(1 + first.channels_in) / 12,
            math.log2(1 + last.channels_out) / 12,
            max(x.kernel_size for x in layers) / 7,
            math.log2(max(max(x.stride for x in layers), 1)) / 3,
            math.log2(max(max(x.groups for x in layers), 1)) / 12,
            math.log2(1 + first.positions_in) / 20,
            math.log2(1 + last.positions) / 20,
            sum(self._macs[x.name] for x in layers) / self._total,
            sum(self._params[x.name] for x in layers) / params,
        ]

    def _template(self, step: int, params: float) -> np.ndarray:
        """What is known of a step beforehand; at the end, of the last one."""
        steps = self.problem.decisions
        decision = steps[min(step, len(steps) - 1)]
        undecided = {layer.name for d in steps[step:] for layer in self._layers[d]}
        known = [float(decision.kind == "shrink"), step / len(steps), 0.0, *self._describe(decision, params), 0.0,
                 sum(self._macs[name] for name in undecided) / self._total]  # fmt: skip
        vector = np.zeros(len(self.low))
        vector[: len(known)] = known
        for name in self._resources:
            vector[self._place[f"budget {name}"]] = 1.0
        return np.clip(vector, self.low, self.high)

    def __call__(self, episode: Walk) -> np.ndarray:
        """The vector `(len(entries()),)` float32 for the current step; at the end, that of the last one with progress 1."""
        cost_model, place, network = self.problem.cost_model, self._place, episode.network
        vector = self._templates[episode.step_index].copy()
        macs = cost_model.predict("macs", network, episode.widths)
        vector[place["removed so far"]] = min(max(1 - macs / cost_model.teacher["macs"], 0.0), 1.0)
        if not episode.done:
            vector[place["void"]] = episode.void(episode.current)
            vector[place["uniform keep ratio"]] = episode.uniform_keep_ratio()
        keep = place["previous keep"]
        vector[keep], vector[keep + 1] = episode.previous
        for name, limit in episode.limits.items():
            used = macs if name == "macs" else cost_model.predict(name, network, episode.widths)
            vector[place[f"budget {name}"]] = min(limit / cost_model.teacher[name], 1.0)
            vector[place[f"spent {name}"]] = min(used / limit / 4, 1.0)
        return vector
