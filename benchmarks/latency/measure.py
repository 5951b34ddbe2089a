"""Measured latency against the budget: students for shares of a teacher's latency, measured again beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from compress_env.contexts import one_thread
from compress_env.errors import InfeasibleBudget, UserError
from compress_env.resources.cost_model import CostModel
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.resources.latency.stopwatch import Stopwatch
from compress_env.search.store import cut_torn_line
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.trace import trace
from compress_env.teachers import load_teacher
from compress_env.walk.walk import Problem, Walk

TEACHERS = ("resnet20-cifar10", "torchvision.models:resnet18", "torchvision.models:mobilenet_v2")
POINTS = 0.05
SECONDS, PAIRS = 3.0, 41  # of the measurement in the table, at least
HEAD = (
    "teacher",
    "runtime",
    "budget",
    "policy",
    "MACs",
    "predicted",
    "verified",
    "measured again",
    "95 % interval",
    "holds",
)


def run(
    out: Path, teachers: Sequence[str], settings: Sequence[RuntimeConfig], budgets: Sequence[float], random_policies: int,
    input_shape: Sequence[int], channel_multiple: int, progress: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows for every teacher, setting, budget and policy, appended to `out` as JSON lines; rows that are there are not repeated.

    Policies: action 0 everywhere ("uniform"), and random actions from seeds 0, 1 and so on. A last row of each teacher and setting
    is the uniform student at half the MACs. Shapes are for teachers that do not know theirs.
    """
    rows = read(out)
    done = {_key(row) for row in rows}
    asked = [("latency", share, policy) for share in budgets for policy in ("uniform", *range(random_policies))]
    asked.append(("macs", 0.5, "uniform"))
    wanted = [(t, s, *a) for t in teachers for s in settings for a in asked]
    loaded: tuple[Any, Any] = (None, None)
    kept = []
    with tqdm(total=len(wanted), desc="latency", unit="student", disable=not progress) as bar, one_thread():
        for name, setting, resource, share, policy in wanted:
            bar.set_postfix_str(f"{name.rpartition(':')[2]}, {setting.runtime}, {resource} {share:.0%}")
            teacher = load_teacher(name)
            shape = list(teacher.input_shape or input_shape)
            row = {
                "teacher": name, "input_shape": shape, "setting": setting.as_dict(), "resource": resource, "budget": share,
                "policy": str(policy), "channel_multiple": channel_multiple,
            }  # fmt: skip
            if _key(row) in done:
                row = next(r for r in rows if _key(r) == _key(row))
            else:
                if loaded[0] != (name, setting):
                    loaded = (name, setting), _problem(teacher.module, shape, channel_multiple, setting)
                row |= measure(loaded[1], resource, share, policy)
                _append(out, row)
            kept.append(row)
            bar.update()
    return kept


def _problem(module: torch.nn.Module, shape: Sequence[int], multiple: int, setting: RuntimeConfig) -> Problem:
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    graph = trace(module, example, channel_multiple=multiple)
    return Problem(module, graph, CostModel(module, graph, example, ["latency"], setting), "two-step")


def measure(problem: Problem, resource: str, share: float, policy: str | int) -> dict[str, Any]:
    """One student of an episode under the budget: shares of the teacher's usage as predicted, as verified, and measured again."""
    cost_model, graph = problem.cost_model, problem.graph
    limits = {resource: share * cost_model.teacher[resource]}
    try:
        episode = Walk(problem, limits, hard=True)
    except InfeasibleBudget as error:
        return {"error": str(error)}
    rng = np.random.default_rng(policy) if policy != "uniform" else None
    while not episode.done:
        episode.step(*(rng.uniform(-0.5, 1), rng.uniform(-1, 0.5)) if rng else (0.0, 0.0))
    asked = cost_model.predict("latency", graph.view(episode.removed), episode.widths)
    plan, student, usage = episode.finish()
    predicted = cost_model.predict_all(frozenset(plan.removed), graph.widths(plan))
    whole = build_student(problem.teacher, graph, Plan())
    again = Stopwatch(whole, cost_model.example, cost_model.runtime).pair(student, SECONDS, PAIRS)
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
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        label = RuntimeConfig.of(row["setting"]).label
        size = "x".join(map(str, row["input_shape"]))
        start = [
            f"{row['teacher'].rpartition(':')[2]}, {size}",
            label,
            f"{row['budget']:.0%} {row['resource']}",
            row["policy"],
        ]
        if "error" in row:
            lines.append([*start, row["error"], *[""] * (len(HEAD) - len(start) - 1)])
            continue
        shares = [f"{100 * row[k]:.1f} %" for k in ("macs", "predicted", "verified", "measured")]
        verdict = "" if row["resource"] != "latency" else "yes" if holds(row) else "no"
        lines.append([*start, *shares, f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %", verdict])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run; a last line that was cut off is left out. Raises UserError if the file is something else."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            try:
                rows.append(json.loads(line))
                _key(rows[-1])
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path} is not a file of latency rows ({error}); choose another --out") from error
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _key(row: dict[str, Any]) -> str:
    names = ("teacher", "input_shape", "setting", "resource", "budget", "policy", "channel_multiple")
    return json.dumps([row[n] for n in names], sort_keys=True)
