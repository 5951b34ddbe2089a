"""The layer embedding: what the agent sees at a step, as bounded and normalised numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from compress_env.allocation.allocator import Allocator
from compress_env.allocation.completion import Completed
from compress_env.allocation.solver import Allocation
from compress_env.decisions import Decision
from compress_env.problem import Problem
from compress_env.resources import BUILT_IN
from compress_env.surgery.ir import Layer
from compress_env.walk.base import AnyWalk

LAYER: tuple[tuple[str, float, str], ...] = (
    ("pass", 0, "0 while layers are removed, 1 while they are shrunk"),
    ("progress", 0, "steps taken / steps of the episode"),
    ("inactive", 0, "1 if the target went with a block that was removed; with absolute actions, the action then has no effect"),
    ("branch", 0, "1 if the target is a residual branch, or lies within one; 0 if all that comes after depends on it"),
    ("index", 0, "position of the target's first layer in the network"),
    ("channels out", 0, "log2(1 + channels out of the last layer) / 12"),
    ("share of MACs", 0, "the target's MACs / the teacher's"),
    ("share of params", 0, "the target's parameters / the teacher's"),
    ("loss alone", 0, "(4 + log10 of the KL in nats if only this block is removed, or this group halved) / 5"),
    ("loss per cost", 0, "(3 + log10 of that KL / the share of the budget's resources that it saves) / 5"),
    ("rank", 0, "share of the targets of its kind that lose less per cost"),
    ("allocation", 0, "what the allocation for these limits keeps of the target: 0 or 1 of a block, a share of a group's channels"),
    ("action 0", 0, "what the action 0 would keep of it"),
    ("predicted score", 0, "the proxy score that is predicted of the completion: what is decided so far, the allocation for the rest"),
    ("predicted loss", 0, "(4 + log10 of its predicted KL in nats) / 5"),
    ("left to decide", 0, "share of the teacher's MACs in layers that are still undecided"),
    ("previous keep", -1, "the last action about a block, as executed; 0 if the last step was about a group"),
    ("previous sparsity", -1, "the last action about a group, as executed; 0 if the last step was about a block"),
)
"""Name, minimum and meaning of what is known of the step; the maximum is 1."""
PREDICTED = ("loss alone", "loss per cost", "rank", "allocation", "predicted score", "predicted loss")
"""Those of them that sensitivities tell; they are absent where there are none, because the network may grow."""


def observed(problem: Problem) -> tuple[str, ...]:
    """Names of the resources that are observed: those that come with this package, and those of the user's that the problem counts."""
    return (*BUILT_IN, *(name for name in problem.cost_model.names if name not in BUILT_IN))


def entries(resources: tuple[str, ...] = BUILT_IN, predicted: bool = True) -> tuple[tuple[str, float, str], ...]:
    """Name, minimum and meaning of each entry of an observation, with two for each resource.

    Args:
        resources: Their names.
        predicted: Whether there are sensitivities, so that losses are predicted.
    """
    return (
        *(entry for entry in LAYER if predicted or entry[0] not in PREDICTED),
        *((f"budget {n}", 0, f"limit on {n} as a share of the teacher's, at most 1; 1 if there is none") for n in resources),
        *((f"spent {n}", 0, f"{n} of the completion as a share of the teacher's, at most 1; 0 if not counted") for n in resources),
    )


def bounds(problem: Problem, predicted: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest values `(entries,)` of observations, float32; see `entries`."""
    low = np.array([low for _, low, _ in entries(observed(problem), predicted)], np.float32)
    return low, np.ones(len(low), np.float32)


def entries_table(predicted: bool = True) -> str:
    """Markdown, a line an entry, for the environment's documentation."""
    lines = [f"    | {i} | {name} | {low} | 1 | {meaning} |" for i, (name, low, meaning) in enumerate(entries(predicted=predicted))]
    return "\n".join(["    | Num | Observation | Min | Max | Meaning |", "    |-----|-------------|-----|-----|---------|", *lines])


class Embedding:
    """Observations for one problem; everything that does not change over a walk is computed once.

    Args:
        problem: The problem.
        allocator: Its allocator; None if nothing is predicted of students, because the network may grow.

    Attributes:
        names: Names of the entries.
        low: Smallest values `(entries,)`, float32.
        high: Largest values `(entries,)`, float32.
    """

    def __init__(self, problem: Problem, allocator: Allocator | None):
        self.allocator, self.problem = allocator, problem
        self._resources = observed(problem)
        every = entries(self._resources, predicted=allocator is not None)
        self.names = tuple(name for name, _, _ in every)
        self.low, self.high = bounds(problem, allocator is not None)
        graph = problem.graph
        whole = graph.view(frozenset())
        self._macs = dict.fromkeys(graph.layers, 0.0) | whole.layer_macs(graph.full)
        self._params = dict.fromkeys(graph.layers, 0.0) | whole.layer_parameters(graph.full)
        self._total = sum(self._macs.values()) or 1.0
        self._position = {name: i / max(1, len(graph.layers) - 1) for i, name in enumerate(graph.layers)}
        self._layers = {d: d.layers(graph) for d in problem.decisions}
        self._place = {name: i for i, name in enumerate(self.names)}
        self._templates: dict[tuple, np.ndarray] = {}

    def _branched(self, decision: Decision) -> bool:
        """Whether the network has a way round the target."""
        blocks = self.problem.graph.blocks
        if not decision.shrinks:
            return blocks[decision.target].kind == "branch"
        own = {layer.name for layer in self._layers[decision]}
        return any(block.kind == "branch" and own <= set(block.layers) for block in blocks.values())

    def _alone(self, allocator: Allocator, names: tuple[str, ...]) -> np.ndarray:
        """For each decision its loss alone, that per cost, and its rank, `(steps, 3)`; cost is the mean share of these resources."""
        cost_model, graph, decisions = self.problem.cost_model, self.problem.graph, self.problem.decisions
        loss, saved = np.zeros(len(decisions)), np.zeros(len(decisions))
        for i, decision in enumerate(decisions):
            plan = self._one(decision)
            loss[i] = allocator.kl(plan)
            left = [cost_model.predict(n, graph.view(plan.removed), plan.widths) / cost_model.teacher[n] for n in names]
            saved[i] = 1 - np.mean(left)
        per_cost = loss / np.maximum(saved, 1e-6)
        shrinks = np.array([d.shrinks for d in decisions])
        rank = [(per_cost[shrinks == own] < each).mean() for own, each in zip(shrinks, per_cost)]
        return np.stack([(4 + _log10(loss)) / 5, (3 + _log10(per_cost)) / 5, rank], 1)

    def _one(self, decision: Decision) -> Allocation:
        """The plan with this block removed, or this group halved, and nothing else."""
        graph, widths = self.problem.graph, self.problem.graph.full.copy()
        if not decision.shrinks:
            return Allocation(frozenset([decision.target]), widths)
        own = graph.groups[decision.target]
        widths[graph.group_index[decision.target]] = own.allowed(own.size // 2)
        return Allocation(frozenset(), widths)

    def _template(self, limits: Mapping[str, float], allocation: Allocation | None) -> np.ndarray:
        """What is known of all steps beforehand at these limits, `(steps + 1, entries)`; at the end, of the last one."""
        key = tuple(limits.items())
        if key not in self._templates:
            if len(self._templates) > 100:
                self._templates.clear()
            self._templates[key] = self._make_template(limits, allocation)
        return self._templates[key]

    def _make_template(self, limits: Mapping[str, float], allocation: Allocation | None) -> np.ndarray:
        steps, cost_model = self.problem.decisions, self.problem.cost_model
        alone = self._alone(self.allocator, tuple(limits)) if self.allocator else None
        vectors = np.zeros((len(steps) + 1, len(self.low)))
        for step, vector in enumerate(vectors):
            i = min(step, len(steps) - 1)
            decision = steps[i]
            layers: list[Layer] = self._layers[decision]
            undecided = {layer.name for d in steps[step:] for layer in self._layers[d]}
            known = {
                "pass": float(decision.shrinks), "progress": step / len(steps), "branch": float(self._branched(decision)),
                "index": self._position[layers[0].name], "channels out": math.log2(1 + layers[-1].channels_out) / 12,
                "share of MACs": sum(self._macs[x.name] for x in layers) / self._total,
                "share of params": sum(self._params[x.name] for x in layers) / cost_model.teacher["params"],
                "left to decide": sum(self._macs[name] for name in undecided) / self._total,
            }  # fmt: skip
            if alone is not None and allocation is not None:
                known |= dict(zip(("loss alone", "loss per cost", "rank"), alone[i].tolist()))
                known["allocation"] = allocation.kept(decision, self.problem.graph)
            known |= {f"budget {name}": 1.0 for name in self._resources}
            known |= {f"budget {name}": limit / cost_model.teacher[name] for name, limit in limits.items()}
            for name, value in known.items():
                vector[self._place[name]] = value
        return np.clip(vectors, self.low, self.high).astype(np.float32)

    def __call__(self, walk: AnyWalk, completed: Completed | None, allocation: Allocation | None) -> np.ndarray:
        """The vector `(entries,)` float32 for the current step; at the end, that of the last one with progress 1.

        Args:
            walk: The walk.
            completed: Its completion, with what is predicted of that; None without an allocator, when what is decided so far is seen.
            allocation: The allocation for its limits; likewise.
        """
        place, teacher = self._place, self.problem.cost_model.teacher
        vector = self._template(walk.limits, allocation)[walk.step_index].copy()
        decision = self.problem.decisions[min(walk.step_index, len(self.problem.decisions) - 1)]
        vector[place["action 0"]] = walk.kept_by_zero()
        if completed is not None:
            vector[place["predicted score"]] = completed.score
            vector[place["predicted loss"]] = min(max((4 + _log10(completed.kl)) / 5, 0.0), 1.0)
        vector[place["previous keep"]], vector[place["previous sparsity"]] = walk.previous
        vector[place["inactive"]] = not walk.done and decision.inactive(walk)
        usage = walk.usage if completed is None else completed.usage
        spent = place[f"spent {self._resources[0]}"]
        for i, name in enumerate(self._resources):
            if name in usage:
                vector[spent + i] = min(usage[name] / teacher[name], 1.0)
        return vector


def _log10(value: np.ndarray | float) -> np.ndarray:
    return np.log10(np.maximum(value, 1e-9))
