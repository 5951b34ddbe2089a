"""Measured latency against the budget: students for shares of a teacher's latency, measured again beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from compress_env.contexts import one_thread
from compress_env.errors import InfeasibleBudget, UserError
from compress_env.files import JsonLines
from compress_env.problem import Problem
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.resources.latency.stopwatch import Stopwatch
from compress_env.spec import ProblemSpec
from compress_env.teachers import load_teacher
from compress_env.walk.walk import Walk

TEACHERS = ("resnet20-cifar10", "torchvision.models:resnet18", "torchvision.models:mobilenet_v2")
POINTS = 0.05
SECONDS, PAIRS = 3.0, 41  # of the measurement in the table, at least
HEAD = (
    "teacher", "runtime", "budget", "policy", "MACs", "predicted", "verified", "measured again", "95 % interval", "holds",
)  # fmt: skip
KEY = ("teacher", "input_shape", "config", "resource", "budget", "policy", "channel_multiple")
"""Fields that a row is known by."""


def run(
    out: Path, teachers: Sequence[str], spec: ProblemSpec, runtimes: Sequence[str], budgets: Sequence[float], random_policies: int,
    progress: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows for every teacher, runtime, budget and policy, appended as JSON lines; those that are there are not made again.

    Policies are action 0 everywhere ("uniform"), and random actions from seeds 0, 1 and so on. A last row of each teacher and runtime
    is the uniform student at half the MACs.

    Args:
        out: The file.
        teachers: Names or factories.
        spec: What else is to be measured: device, batch, threads, multiple of the widths, and the shape of one input for teachers that
            do not know theirs.
        runtimes: Where latency is measured.
        budgets: Shares of the teacher's latency.
        random_policies: How many, beside the uniform one.
        progress: Whether to show how far it is.

    Raises:
        UserError: If the file holds something else, or cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    file = JsonLines(out, dict)
    known = {_key(row): row for row in read(out)}
    asked: list[tuple[str, float, str | int]] = [
        ("latency", share, policy) for share in budgets for policy in ("uniform", *range(random_policies))
    ]
    asked.append(("macs", 0.5, "uniform"))
    problem: Problem | None = None
    kept = []
    with tqdm(
        total=len(teachers) * len(runtimes) * len(asked), desc="latency", unit="student", disable=not progress
    ) as bar, one_thread():
        for name, runtime in ((t, r) for t in teachers for r in runtimes):
            shape = load_teacher(name).input_shape or spec.input_shape or ()
            own = replace(spec, teacher=name, runtime=runtime, input_shape=shape)
            problem = None
            for resource, share, policy in asked:
                bar.set_postfix_str(f"{name.rpartition(':')[2]}, {runtime}, {resource} {share:.0%}")
                row = {
                    "teacher": name, "input_shape": list(shape), "config": _config(own).as_dict(), "resource": resource,
                    "budget": share, "policy": str(policy), "channel_multiple": spec.channel_multiple,
                }  # fmt: skip
                if _key(row) in known:
                    row = known[_key(row)]
                else:
                    problem = problem or Problem.build(own)
                    row |= measure(problem, resource, share, policy)
                    file.append(row)
                kept.append(row)
                bar.update()
    return kept


def _config(spec: ProblemSpec) -> RuntimeConfig:
    return RuntimeConfig(spec.runtime, spec.latency_batch, spec.latency_threads, spec.device)


def measure(problem: Problem, resource: str, share: float, policy: str | int) -> dict[str, Any]:
    """One student of a walk under the budget: shares of the teacher's usage as predicted, as verified, and measured again."""
    cost_model, graph = problem.cost_model, problem.graph
    limits = {resource: share * cost_model.teacher[resource]}
    try:
        walk = Walk(problem, limits)
    except InfeasibleBudget as error:
        return {"error": str(error)}
    rng = None if isinstance(policy, str) else np.random.default_rng(policy)
    while not walk.done:
        walk.step(*((rng.uniform(-0.5, 1), rng.uniform(-1, 0.5)) if rng else (0.0, 0.0)))
    asked = cost_model.predict("latency", graph.view(walk.removed), walk.widths)
    plan, student, usage = problem.finish(walk.removed, walk.widths, limits)
    predicted = cost_model.predict_all(plan.switched, graph.widths(plan))
    again = Stopwatch(problem.whole, cost_model.example, problem.runtime).pair(student, SECONDS, PAIRS)
    return {
        "plan": json.loads(plan.to_json()), "teacher_ms": again.milliseconds[1],
        "macs": usage["macs"] / cost_model.teacher["macs"], "predicted": predicted["latency"] / cost_model.teacher["latency"],
        "verified": usage["latency"] / cost_model.teacher["latency"], "measured": again.ratio, "low": again.low, "high": again.high,
        "pairs": again.pairs, "asked": asked / cost_model.teacher["latency"],
    }  # fmt: skip


def holds(row: dict[str, Any]) -> bool:
    """Whether the latency measured again is not above the budget, and within five points of it or of what the policy asked for."""
    return min(row["budget"], row.get("asked", row["budget"])) - POINTS <= row["measured"] <= row["budget"]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown."""
    lines: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        label = RuntimeConfig(**row["config"]).label
        size = "x".join(map(str, row["input_shape"]))
        start = [f"{row['teacher'].rpartition(':')[2]}, {size}", label, f"{row['budget']:.0%} {row['resource']}", row["policy"]]
        if "error" in row:
            lines.append([*start, row["error"], *[""] * (len(HEAD) - len(start) - 1)])
            continue
        shares = [f"{100 * row[k]:.1f} %" for k in ("macs", "predicted", "verified", "measured")]
        verdict = "" if row["resource"] != "latency" else "yes" if holds(row) else "no"
        lines.append([*start, *shares, f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %", verdict])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run, none if there is no file. Raises UserError if the file is something else."""
    rows = JsonLines(path, dict).read()
    if any(set(KEY) - set(row) for row in rows):
        raise UserError(f"{path} is not a file of latency rows; choose another --out")
    return rows


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[n] for n in KEY], sort_keys=True)
