"""`Sensitivities`: the KL divergence that one decision alone causes, measured once a teacher, and what it says of whole plans."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from compress_env import cache
from compress_env.errors import EveryStudentFailed
from compress_env.evaluation import Evaluation
from compress_env.evaluator import PlanEvaluator
from compress_env.problem import Problem
from compress_env.records import Damaged, record
from compress_env.surgery.plan import Plan

FORMAT = 1
"""Of what is kept; counted up when students would be judged otherwise, or other ones."""
SHARES = (0.8, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of its channels that a group is measured at."""
FEW_SHARES, FEW_IMAGES = (0.6, 0.25), 64
"""Those of a network that runs in parts, one evaluation of which takes seconds; and the images that it is refitted and judged on."""
LEAST = 1e-7
"""Nats below which a KL is rounding, where its logarithm is taken."""
FAILED = 10.0
"""Nats that a student counts for which could not be evaluated."""
ENOUGH = 10
"""Students after which measuring ends if none could be evaluated; they are spread over all decisions."""


@dataclass(frozen=True)
class Sensitivities:
    """What each decision of a problem costs alone: KL(teacher || student) of the refitted student, in nats.

    Attributes:
        blocks: With one block removed, by its name.
        groups: With one group at a few widths: pairs of channels and KL, by its name, the fewest channels first.
        evaluations: How many students were judged for it.
        seconds: How long that took, when it was done.
        failed: Why students could not be evaluated, by their plan as JSON; they count as `FAILED`.
    """

    blocks: Mapping[str, float]
    groups: Mapping[str, tuple[tuple[int, float], ...]]
    evaluations: int
    seconds: float = field(compare=False)
    failed: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivities:
        """The sensitivities of `to_json`. Raises Damaged if it is none."""
        found = record(cls, data)
        for name, pairs in found.groups.items():
            widths = [width for width, _ in pairs]
            if not widths or widths != sorted(set(widths)) or widths[0] < 1:
                raise Damaged(f"the widths of {name!r} are not whole numbers that grow")
        return found

    def check(self, problem: Problem) -> None:
        """Check that these are of the decisions of a problem. Raises Damaged if not."""
        groups: dict[str, set[int]] = {}
        for name, width in (pair for plan in probes(problem) if not plan.removed for pair in plan.widths):
            groups.setdefault(name, set()).add(width)
        blocks = {d.target for d in problem.decisions if not d.shrinks}
        if self.blocks.keys() != blocks or {name: {width for width, _ in pairs} for name, pairs in self.groups.items()} != groups:
            raise Damaged("they are of other decisions than those about this network")

    def curve(self, group: str, size: int) -> np.ndarray:
        """The KL of a group with 0, 1, ... `size` channels, `(size + 1,)`.

        Between the measured widths log KL is linear in the logarithm of the share, below the smallest it goes on as before it, and
        above the largest it falls linearly to 0 for all channels. Fewer channels are never better.
        """
        if not (pairs := self.groups.get(group)):
            return np.zeros(size + 1)
        measured = np.array([n for n, _ in pairs], float)
        kl = np.maximum(np.maximum.accumulate([kl for _, kl in pairs][::-1])[::-1], LEAST)
        widths = np.arange(1, size + 1)
        logs = np.interp(np.log(widths), np.log(measured), np.log(kl))
        if len(measured) > 1:
            slope = (np.log(kl[1]) - np.log(kl[0])) / (np.log(measured[1]) - np.log(measured[0]))
            below = widths < measured[0]
            logs[below] = np.log(kl[0]) + np.minimum(slope, 0) * (np.log(widths[below]) - np.log(measured[0]))
        found = np.exp(logs)
        above = widths > measured[-1]
        found[above] = kl[-1] * (size - widths[above]) / (size - measured[-1])
        return np.concatenate([found[:1], found])


def probes(problem: Problem) -> list[Plan]:
    """The plans that sensitivities are measured with: each decision of the problem alone."""
    graph, plans = problem.graph, []
    wanted = FEW_SHARES if problem.in_parts else SHARES
    for decision in problem.decisions:
        if not decision.shrinks:
            plans.append(graph.canonical(frozenset([decision.target]), graph.full))
            continue
        i = graph.group_index[decision.target]
        own = graph.groups[decision.target]
        least = set() if problem.in_parts else {own.floor}
        shares = sorted({own.allowed(int(share * own.size + 1e-6)) for share in wanted} | least)
        for width in shares:
            if width < own.size:
                widths = graph.full.copy()
                widths[i] = width
                plans.append(graph.canonical(frozenset(), widths))
    return list(dict.fromkeys(plans))


def loss(evaluation: Evaluation) -> float:
    """What a student has lost, in nats; where no KL is measured, the share of the metric that is gone."""
    if evaluation.failed:
        return FAILED
    if evaluation.kl is None:
        return max(0.0, 1 - evaluation.metric / evaluation.teacher_metric)
    return max(0.0, evaluation.kl)


def is_kept(key: str | None) -> bool:
    """Whether this machine keeps the sensitivities of a key of `measure`."""
    return key is not None and (cache.folder("sensitivities") / f"{FORMAT}-{key}.json").is_file()


def measure(problem: Problem, evaluator: PlanEvaluator, key: str | None, progress: bool = False) -> Sensitivities:
    """Measure the sensitivities of a problem, unless this machine has done so before.

    Args:
        problem: Says what is decided.
        evaluator: Judges each decision alone, and then forgets it: no search finds these students known.
        key: Names everything that the numbers depend on; None if they are not to be kept.
        progress: Whether to show on standard error how far it is.

    Returns:
        The sensitivities. They are kept unless memory or time ran out for one of them.

    Raises:
        EveryStudentFailed: If no student can be evaluated.
    """
    transient = False

    def compute() -> dict[str, Any]:
        nonlocal transient
        plans, began = probes(problem), time.perf_counter()
        found: dict[Plan, float] = {}
        failed: dict[str, str] = {}
        name = problem.teacher.name
        for plan in tqdm(_spread(plans), desc=f"sensitivities of {name}", unit="student", disable=not progress):
            known = evaluator.known(plan)
            evaluation = known or evaluator(plan)
            found[plan] = loss(evaluation)
            if known is None:
                evaluator.forget(plan)
            if evaluation.failed:
                failed[plan.to_json()] = evaluation.failed
                transient |= evaluation.transient
            if len(failed) == len(found) == ENOUGH:
                raise EveryStudentFailed(
                    f"none of the first {ENOUGH} students of {name} could be evaluated ({evaluation.failed}); a search would go no "
                    "better, so mend the cause first"
                )
        if failed:
            plan_text, reason = next(iter(failed.items()))
            warnings.warn(f"{len(failed)} of {len(plans)} students that sensitivities are measured with could not be evaluated; "
                          f"{plan_text}: {reason}", stacklevel=2)  # fmt: skip
        graph = problem.graph
        blocks = {d.target: found[graph.canonical(frozenset([d.target]), graph.full)] for d in problem.decisions if not d.shrinks}
        groups: dict[str, list[tuple[int, float]]] = {}
        for plan in plans:
            if not plan.removed:
                ((group, width),) = plan.widths
                groups.setdefault(group, []).append((width, found[plan]))
        pairs = {group: tuple(sorted(own)) for group, own in groups.items()}
        return Sensitivities(blocks, pairs, len(plans), round(time.perf_counter() - began, 1), failed).to_json()

    if key is None:
        return Sensitivities.from_json(compute())
    def use(data: Any) -> Sensitivities:
        found = Sensitivities.from_json(data)
        found.check(problem)
        return found

    return cache.values("sensitivities", f"{FORMAT}-{key}", compute, use, keep=lambda _: not transient)


def _spread(plans: Sequence[Plan]) -> list[Plan]:
    """The plans, of which the first few come from all over them."""
    stride = max(1, len(plans) // ENOUGH)
    return list(dict.fromkeys([*plans[::stride], *plans]))
