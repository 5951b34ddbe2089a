"""What all students have to stay within: a number of MACs, or a measured time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx, nn

from compress_env.errors import UserError
from compress_env.problem import Problem
from compress_env.resources.base import RESOURCES, Resource
from compress_env.resources.budget import Limit, parse_limit
from compress_env.resources.latency.stopwatch import Stopwatch

RESOURCES_COMPARED = ("macs", "latency")
RUNTIMES = ("eager", "onnxruntime")
"""Those that every student is timed in, whatever the limit is on."""
NEAR = 0.03
"""Share of the teacher's time from the limit, within which a student is measured twice, as in a search."""


def parsed(budget: Mapping[str, Any]) -> tuple[str, Limit]:
    """The resource of a budget and its limit. Raises UserError for another resource, or more than one."""
    if len(budget) != 1 or not set(budget) <= set(RESOURCES_COMPARED):
        raise UserError(
            "students are compared at equal MACs or equal time; give one --budget, for example macs=0.5 or latency=60%"
        )
    ((name, value),) = budget.items()
    return name, parse_limit(value, RESOURCES.get(name))


@dataclass(frozen=True, eq=False)
class Bound:
    """A limit of one problem.

    Attributes:
        problem: It has the teacher.
        resource: "macs" or "latency".
        value: The limit in the resource's unit.
        budget: As it was given.
    """

    problem: Problem
    resource: str
    value: float
    budget: Mapping[str, Any]

    @classmethod
    def of(cls, problem: Problem, budget: Mapping[str, Any]) -> Bound:
        """The limit of a budget. Raises UserError as `parsed`."""
        name, limit = parsed(budget)
        return cls(problem, name, limit.absolute(problem.cost_model.teacher[name]), budget)

    @property
    def share(self) -> float:
        """The limit as a share of what the teacher uses."""
        return self.value / self.problem.cost_model.teacher[self.resource]

    @property
    def by_resource(self) -> dict[str, float]:
        """As walks and allocations take it."""
        return {self.resource: self.value}

    @property
    def measured(self) -> bool:
        """Whether only running a student tells what it uses."""
        return self.resource in self.problem.cost_model.measured

    @property
    def multiple(self) -> int:
        """What all widths are multiples of: 1 unless time is measured, or the problem says otherwise."""
        return self.problem.spec.channel_multiple or RESOURCES.get(self.resource).channel_multiple

    def used(self, model: nn.Module) -> float:
        """What a student uses, as a share of the teacher. Measured time that is near the limit is the mean of two measurements."""
        if not self.measured:
            return count(self.problem, self.resource, model) / self.problem.cost_model.teacher[self.resource]
        model = traced(model)
        first = self._stopwatch.pair(model).ratio
        return first if abs(first - self.share) > NEAR else (first + self._stopwatch.pair(model).ratio) / 2

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(self.problem.whole, self.problem.data.calibration(1), self.problem.runtime)


def count(problem: Problem, name: str, model: nn.Module) -> float:
    """MACs or parameters of any network that takes the problem's inputs, in the resource's unit."""
    resource = RESOURCES.get(name)
    assert isinstance(resource, Resource)
    return resource.count(traced(model), problem.data.calibration(1).to(next(model.parameters()).device))


def traced(model: nn.Module) -> Any:
    """The network as ours are, which takes PyTorch eager a tenth longer than a plain module; itself if it has no simple trace."""
    try:
        return model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    except Exception:  # noqa: BLE001 - whatever code raises that looks at values
        return model


class Times:
    """Times networks of one problem beside their teacher in each of `RUNTIMES`, on one CPU thread and for one input at once.

    Args:
        problem: The problem.
    """

    def __init__(self, problem: Problem):
        plain = replace(problem.runtime, batch=1, threads=1, device="cpu")
        example = problem.data.calibration(1)
        self._watches = {name: Stopwatch(problem.whole, example, replace(plain, runtime=name)) for name in RUNTIMES}

    def __call__(self, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of a network, and its share of the teacher's time, by runtime."""
        model = traced(model)
        pairs = {name: watch.pair(model) for name, watch in self._watches.items()}
        return {n: p.milliseconds[0] for n, p in pairs.items()}, {n: p.ratio for n, p in pairs.items()}
