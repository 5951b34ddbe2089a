"""`Problem`: a teacher as decisions, with everything that is known of it before a student is judged. No Gymnasium, no evaluator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress_env import cache, devices
from compress_env.contexts import one_thread, seeded
from compress_env.data import Data
from compress_env.decisions import Decision, decisions
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import AT_ONCE
from compress_env.errors import InfeasibleBudget, UserError
from compress_env.own_code import code_id
from compress_env.records import Damaged, value_of
from compress_env.resources import RESOURCES
from compress_env.resources.base import Candidate, amount
from compress_env.resources.cost_model import CostModel
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.running import EXAMPLES, answers, data_of, example_of, input_shape_of, run_teacher, takes_bfloat16
from compress_env.spec import ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Ranking
from compress_env.surgery.layerwise import part_size
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking import load_ranker, rank_channels
from compress_env.surgery.signature import signature
from compress_env.tasks import Task, agreement, load_task
from compress_env.teachers import Teacher, load_teacher

RANKING_IMAGES = 512
"""Training images that channels are ranked on, once; judging a student takes fewer, since it is done for each."""


@dataclass(frozen=True)
class Completion:
    """Choices for everything.

    Attributes:
        removed: Blocks that go.
        widths: Channels that the groups keep, `(groups,)`.
        usage: Counted, and measured, on the built student.
        needs: The limits within which it is possible: the usage, or what is predicted of it if that is more.
    """

    removed: frozenset[str]
    widths: np.ndarray
    usage: Mapping[str, float]
    needs: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """What was measured on images beforehand. With it, a problem is made again without data.

    Attributes:
        ranking: The order of each group's channels.
        input_shape: Of one input, without the batch.
        input_type: Torch's name of the type of its numbers.
    """

    ranking: Ranking
    input_shape: tuple[int, ...]
    input_type: str = "float32"

    @property
    def example(self) -> Tensor:
        """Zeros in the place of inputs."""
        return torch.zeros(EXAMPLES, *self.input_shape, dtype=getattr(torch, self.input_type))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        orders = {name: np.asarray(order).tolist() for name, order in self.ranking.orders.items()}
        ranking = {"name": self.ranking.name, "orders": orders}
        return {"ranking": ranking, "input_shape": list(self.input_shape), "input_type": self.input_type}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """The measurements of `to_json`. Raises Damaged if it is none."""
        ranking = value_of(Mapping[str, Any], data.get("ranking"), "ranking")
        orders = value_of(Mapping[str, tuple[int, ...]], ranking.get("orders"), "orders")
        shape = value_of(tuple[int, ...], data.get("input_shape"), "input_shape")
        if not shape or min(shape) < 1:
            raise Damaged(f"'input_shape' is {shape}, not that of an input")
        kind = value_of(str, data.get("input_type", "float32"), "input_type")
        if not isinstance(getattr(torch, kind, None), torch.dtype):
            raise Damaged(f"'input_type' is {kind!r}, not one of torch's types")
        name = value_of(str, ranking.get("name"), "name")
        return cls(Ranking(name, {group: np.array(order, int) for group, order in orders.items()}), shape, kind)


class Problem:
    """A compression problem; nothing of it changes after it was built, and the teacher is never changed.

    Make one with `Problem.build`.

    Attributes:
        spec: The settings that it was built from.
        teacher: The trained network, with its name.
        task: The meaning of its outputs.
        device: Torch device on which students are judged.
        graph: What can be removed and shrunk; students keep the channels that the ranking puts first.
        ranking: The order of each group's channels.
        module: The network that students are made of: the teacher, or where it may grow, one that holds all that may be inserted.
        whole: The student of the empty plan, on `device`; it computes what the teacher does, bit for bit.
        cost_model: Predicts and counts what students use.
        decisions: The steps of a walk.
    """

    def __init__(self, spec: ProblemSpec, teacher: Teacher, task: Task, data: Data | None, measured: Measured | None, progress: bool):
        self.spec, self.teacher, self.task = spec, teacher, task
        self._data, self._progress = data, progress
        runtime = RuntimeConfig(
            spec.runtime, spec.latency_batch, spec.latency_threads, "cpu" if spec.device == "auto" else str(spec.device)
        )
        self.runtime = runtime
        devices.usable(runtime.device)
        example = measured.example if measured else example_of(spec, teacher, data)
        with one_thread(), seeded():  # a network may be random in evaluation mode
            running = run_teacher(spec, teacher, task, data, example, progress)
            graph, self.whole, example = running.graph, running.whole, running.example
            self.module = running.module
            self._inputs = torch.zeros_like(example)
            self.device = next(self.whole.parameters()).device
            every = self.student_of(graph, Plan.of(inserted=graph.optional)) if graph.optional else self.whole
            self.ranking = measured.ranking if measured else rank_channels(spec.ranking, every, graph, self._images)
            self.graph: LayerGraph = graph.ranked(self.ranking)
            self.cost_model = CostModel(self.module, self.graph, example[:2], spec.resources, runtime, progress)
        self.decisions: tuple[Decision, ...] = decisions(self.graph, spec.schedule)
        self.removable = frozenset(d.target for d in self.decisions if not d.shrinks)
        shrinks = [d.target if d.shrinks else None for d in self.decisions]
        self.shrinkable = np.array([name in shrinks for name in self.graph.groups], bool)
        floors = [self.graph.groups[name].floor / self.graph.groups[name].size if name else np.inf for name in shrinks]
        least = [min(floors[i:], default=np.inf) for i in range(len(floors) + 1)]
        self.floors = [share if share < np.inf else 0.0 for share in least]
        """For each step, and for the end, the smallest share that a group still undecided may keep; 0 if there is none."""
        self.completions = self._complete()

    @classmethod
    def build(cls, spec: ProblemSpec, *, measured: Measured | None = None, progress: bool = False) -> Problem:
        """The problem of a spec; it takes seconds, and is to be made once a process.

        Args:
            spec: The teacher, its data, and what may change.
            measured: What an earlier process measured for this very spec; no data is loaded then until it is asked for.
            progress: Whether to show on standard error how far it is.

        Returns:
            The problem. Its data is loaded only if the ranking asks for images, or when `data` is first used.

        Raises:
            UserError: If the teacher or the data cannot be used, or do not suit each other.
            NothingToDecide: If nothing can be removed or shrunk.
        """
        task: Task
        task, needs_images = load_task(spec.task), load_ranker(spec.ranking).NEEDS_INPUTS
        teacher = load_teacher(spec.teacher, spec.weights, progress)
        data = None
        if needs_images and spec.input_shape is not None:
            raise UserError(f"an input shape is for a problem without data, and the ranking {spec.ranking!r} looks at images")
        if measured is None and (needs_images or input_shape_of(spec, teacher) is None):
            data = data_of(spec, teacher, progress)
            task = agreement.on(task, str(spec.task), data)
        return cls(spec, teacher, task, data, measured, progress)

    @property
    def data(self) -> Data:
        """The teacher's data; loaded when it is first asked for. Raises UserError if there is none."""
        if self._data is None:
            data = data_of(self.spec, self.teacher, self._progress)
            self.task = agreement.on(self.task, str(self.spec.task), data)
            self.task.check(answers(self.whole, self.teacher.name, data.calibration(EXAMPLES)), data, self.teacher.name)
            self._data = data
        return self._data

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, without the batch."""
        return tuple(self._inputs.shape[1:])

    def example(self, count: int) -> Tensor:
        """Inputs `(count, ...)` on the CPU: training inputs if the data is loaded, else zeros."""
        return self._data.calibration(count) if self._data else self._inputs[:1].expand(count, *self.input_shape).clone()

    def sample(self) -> dict[str, list[int]]:
        """Which of the examples are looked at, if the data is loaded and does not fit into memory: `Data.sample`."""
        return self._data.sample() if self._data else {}

    def _images(self) -> Tensor:
        return self.data.calibration(RANKING_IMAGES).to(self.device)

    @property
    def measured(self) -> Measured:
        """What was measured on images, to make the problem again without them."""
        return Measured(self.ranking, self.input_shape, str(self._inputs.dtype).removeprefix("torch."))

    @cached_property
    def bfloat16(self) -> bool:
        """Whether students are computed in mixed precision: the processor is faster in it, and the teacher runs in it."""
        pays = devices.bfloat16_pays(float(self.graph.view(frozenset()).macs(self.graph.full)), self.device)
        return pays and takes_bfloat16(self.whole, self.example(2))

    @cached_property
    def in_parts(self) -> bool:
        """Whether the network is so large that it runs on a few inputs at a time; each of its students takes seconds to judge."""
        return part_size(self.graph, AT_ONCE, self.device) < AT_ONCE

    def runnable(self, recipe: Recipe) -> Recipe:
        """The recipe, in float32 where the teacher does not run in bfloat16."""
        if recipe.precision != "bfloat16" or takes_bfloat16(self.whole, self.example(2)):
            return recipe
        return replace(recipe, precision="float32")

    @cached_property
    def uniform_columns(self) -> np.ndarray:
        """Widths `(groups, n)` at which all groups that may shrink keep one share, as columns that grow."""
        return np.where(self.shrinkable[:, None], self.graph.levels[0], self.graph.full[:, None])

    @cached_property
    def id(self) -> str:
        """Differs where a plan means another student, or a student is judged on other data: 16 hexadecimal digits.

        It is made of the teacher's weights and graph, the scope and schedule, and the validation images, but not of the ranking, which
        has an `id` of its own.
        """
        validation = self.data.validation_subset(None) if self.data.stored else self.data.validation
        task = type(self.task).__qualname__ + self.task_code
        parts = [cache.fingerprint(self.teacher.module), signature(self.graph), self.spec.schedule, task]
        digest = hashlib.sha256(repr([*parts, self.data.normalization]).encode())
        for values in (validation.inputs[:], validation.labels):
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def task_code(self) -> str:
        """A name for the code of a task of the user's own, which outcomes depend on; "" for one of this package."""
        return code_id(self.task)

    def student(self, plan: Plan) -> fx.GraphModule:
        """The student of a plan with the teacher's weights, not refitted, on `device`. Raises InvalidPlan."""
        return self.student_of(self.graph, plan)

    def student_of(self, graph: LayerGraph, plan: Plan) -> fx.GraphModule:
        """As `student`, for channels that are ranked as in `graph`."""
        return build_student(self.module, graph, plan).to(self.device)

    def candidate(self, removed: frozenset[str], widths: np.ndarray) -> Candidate:
        """The plan without these blocks and with these widths `(groups,)`, its student and what was counted on that."""
        return self.built(self.graph.canonical(removed, widths))

    def built(self, plan: Plan) -> Candidate:
        """A plan with its student, where the teacher is, and what was counted on that."""
        student = build_student(self.module, self.graph, plan)
        return Candidate(plan, student, self.cost_model.count(student, plan))

    def _complete(self) -> list[Completion]:
        """The smallest students: all blocks gone, and none. Where the network may only grow, it is the network as it came."""
        may_remove, may_shrink = self.spec.schedule != "shrink", self.spec.schedule != "removal"
        floor = self.graph.floor if may_shrink else self.graph.full
        everything = frozenset(self.graph.blocks) - self.graph.optional
        completions = []
        for removed in [everything, frozenset()] if may_remove else [frozenset()]:
            found = self.candidate(removed, floor)
            predicted = self.cost_model.predict_all(found.plan.switched, floor)
            needs = {name: max(used, predicted[name]) for name, used in found.usage.items()}
            completions.append(Completion(found.plan.switched, floor, found.usage, needs))
        return completions

    def smallest(self, name: str) -> float:
        """The smallest limit on a resource that can be met, in its unit."""
        return min(c.needs[name] for c in self.completions)

    def feasible_completion(self, limits: Mapping[str, float]) -> Completion:
        """Choices for everything that are within all limits.

        Args:
            limits: By resource, in its unit.

        Raises:
            InfeasibleBudget: If there are none; the message names the smallest reachable usage of each.
        """
        for completion in self.completions:
            if all(completion.needs[name] <= limit for name, limit in limits.items()):
                return completion
        parts = []
        for name, limit in limits.items():
            least, teacher = self.smallest(name), self.cost_model.teacher[name]
            meant = f"; did you mean {limit:g}%?" if limit in range(2, 101) and limit < least else ""
            parts.append(
                f"{name} of {amount(limit)} {RESOURCES.get(name).unit} ({limit / teacher:.1%} of the teacher); "
                f"the smallest reachable is {amount(least)} ({least / teacher:.1%}){meant}"
            )
        raise InfeasibleBudget(f"the budget cannot be met: {'; '.join(parts)}")

    def finish(self, removed: frozenset[str], widths: np.ndarray, limits: Mapping[str, float] | None) -> Candidate:
        """The student of the choices that were made, within every limit.

        Everything but a measured resource is predicted exactly. Where a limit is on a measured one, the student is changed until
        measuring it says that it fits (`MeasuredResource`); if that fails, a feasible completion takes its place.

        Args:
            removed: Blocks that go.
            widths: Channels that the groups keep, `(groups,)`.
            limits: By resource, in its unit; None if they are soft.

        Raises:
            InfeasibleBudget: If they cannot be met.
        """
        if limits is None:
            return self.candidate(removed, widths)
        completion = self.feasible_completion(limits)
        found = self.cost_model.repair(
            removed, widths, limits, removable=self.removable, shrinkable=self.shrinkable, smallest=completion.widths
        )  # fmt: skip
        return found or self.candidate(completion.removed, completion.widths)._replace(usage=dict(completion.usage))
