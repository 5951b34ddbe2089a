"""Plans made without a search at several budgets: the uniform ones, the allocations, and those of saved policies, beside searches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from compress_env.errors import UserError
from compress_env.files import JsonLines, atomic, make_folder
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.registry import load_attribute
from compress_env.search.run import find_agent, search
from compress_env.search.store import alone_in
from compress_env.spec import EnvironmentSpec, ProblemSpec

BUDGETS = tuple(round(0.2 + 0.6 * i / 9, 3) for i in range(10))
"""Ten shares of the MACs, from 20 to 80 %."""
FILE = "rows.jsonl"
UNIFORM, ALLOCATION, POLICY, PROPOSALS, SEARCH = KINDS = ("uniform", "allocation", "policy", "best of ten", "search")
SOLUTIONS, PROPOSED = 5, 10
"""Plans of the allocation with other blocks removed, and plans that a policy proposes: one of each is kept by evaluation."""
COLORS = dict(zip(KINDS, ("#6b7680", "#2a9d5c", "#1f5fa8", "#7b4fb5", "#d9822b")))


@dataclass(frozen=True)
class ProposedStudent:
    """A student: uniform, the allocation, of a saved policy, or the best of a search with an agent. Judged right after the refit.

    Attributes:
        budget: Share of the MACs.
        kind: One of KINDS.
        which: File of the policy, or agent, evaluations and seed of the search.
        metric: Its main metric on validation images.
        reward: Its reward.
        teacher_metric: The teacher's main metric.
        digest: Of the bytes of the policy's file; "" for students of no policy, and in older files.
    """

    budget: float
    kind: str
    which: str
    metric: float
    reward: float
    teacher_metric: float
    digest: str = ""


def compare(
    files: Sequence[str], spec: ProblemSpec, budgets: Sequence[float], agent: str, evaluations: int, seeds: Sequence[int], out: Path,
    *, progress: bool = True,
) -> list[ProposedStudent]:  # fmt: skip
    """A row for each policy and search at each budget; those that `out/rows.jsonl` has are not made again.

    Rows of a policy whose file has changed since are made again, and take the place of the earlier ones.

    Args:
        files: Saved policies; there may be none.
        spec: The problem; it is built once.
        budgets: Shares of the MACs.
        agent: Of the searches.
        evaluations: Of each search; 0 leaves searches out.
        seeds: Of the searches.
        out: The folder.
        progress: Whether to show how far it is.

    Raises:
        UserError: For files that are no policies, and for rows of other settings.
    """
    players: list[tuple] = [
        (UNIFORM, "", "", ("uniform", 1, 0, None, None)), (ALLOCATION, "", "", ("allocation", SOLUTIONS, 0, None, None)),
    ]  # fmt: skip
    for file in map(str, files):
        load_attribute("compress_env.agents.saved:load_policy", "policy")(file)  # refuse before the teacher is loaded
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
        players.append((POLICY, file, digest, ("policy", 1, 0, None, {"file": file})))
        players.append((PROPOSALS, file, digest, ("policy", PROPOSED, 0, None, {"file": file})))
    find_agent(agent)
    for seed in seeds if evaluations else ():
        which = f"{agent}, {evaluations} evaluations, seed {seed}"
        players.append((SEARCH, which, "", (agent, evaluations, seed, out / "runs" / which, None)))
    make_folder(out)
    with alone_in(out):
        results = JsonLines(out / FILE, ProposedStudent, header=True)
        rows = _latest(results.begin({name: spec.to_json()[name] for name in ("teacher", "weights", "data")}))
        known = {(r.budget, r.kind, r.which, r.digest) for r in rows}
        todo = [(b, *player) for b in budgets for player in players if (b, *player[:3]) not in known]
        problem, objective, at = None, None, None
        for budget, kind, which, digest, (name, episodes, seed, folder, own) in tqdm(
            todo, desc="budgets", unit="student", disable=not progress
        ):
            if objective is None or budget != at:
                problem, at = problem or Problem.build(spec, progress=progress), budget
                objective = Objective(EnvironmentSpec(spec, {"macs": budget}), problem=problem)
            where = folder and folder / f"{budget:g}"
            best = search(objective, name, episodes, seed, where, progress=False, settings=own).best
            if best is None:
                raise UserError(f"no student for {budget:.0%} of the MACs could be evaluated ({which or kind})")
            judged = best.evaluation
            rows.append(ProposedStudent(budget, kind, which, judged.metric, best.reward, judged.teacher_metric, digest))
            results.append(rows[-1])
    chosen = {player[:3] for player in players}
    return [r for r in rows if r.budget in budgets and (r.kind, r.which, r.digest) in chosen]


def _latest(rows: Sequence[ProposedStudent]) -> list[ProposedStudent]:
    """The rows without those of policies in whose place there is another file by now."""
    last = {(r.kind, r.which): r.digest for r in rows}
    return [r for r in rows if r.digest == last[r.kind, r.which]]


def table(rows: Sequence[ProposedStudent]) -> str:
    """Markdown, a line a budget and one of their means: metric and reward of each kind, averaged over policies and over searches."""
    kinds = [kind for kind in KINDS if any(r.kind == kind for r in rows)]
    lines = [f"| MACs | {' | '.join(kinds)} | reward: {' | '.join(kinds)} |", "|---" * (2 * len(kinds) + 1) + "|"]
    cells: list[list[float]] = []
    for budget in sorted({r.budget for r in rows}):
        own = [[r for r in rows if r.budget == budget and r.kind == kind] for kind in kinds]
        metric = [float(np.mean([r.metric for r in of])) if of else np.nan for of in own]
        reward = [float(np.mean([r.reward for r in of])) if of else np.nan for of in own]
        cells.append([*metric, *reward])
        lines.append(_line(f"{budget:.0%}", cells[-1]))
    lines.append(_line("mean", np.mean(cells, 0).tolist()))
    return "\n".join(lines).replace("nan%", "-").replace("nan", "-")


def load(folder: Path) -> dict[str, list[ProposedStudent]]:
    """The rows of the results files `*.jsonl` in `folder`, each under its name (its teacher's for `rows.jsonl`).

    Of policies whose file has changed there are the last rows alone. Raises UserError if there are none.
    """
    of: dict[str, list[ProposedStudent]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        results = JsonLines(file, ProposedStudent, header=True)
        if rows := results.read():
            of[results.settings.get("teacher", file.stem) if file.name == FILE else file.stem] = _latest(rows)
    if not of:
        raise UserError(f"there are no results in {folder}; `compress-env bench policy --out {folder}` makes them")
    return of


def report(of: Mapping[str, Sequence[ProposedStudent]]) -> str:
    """Markdown tables of rows, each under its name."""
    return "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in of.items())


def picture(of: Mapping[str, Sequence[ProposedStudent]], path: Path) -> None:
    """A PNG with a panel for each title of `of`: validation metric of its students by MACs; of several policies mean and range."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(of)))
    lines = -(-len(of) // columns)
    figure = Figure(figsize=(0.5 + 2.9 * columns, 0.5 + 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (title, rows) in zip(panels, of.items()):
        for kind, color in COLORS.items():
            budgets = sorted({r.budget for r in rows if r.kind == kind})
            found = [[100 * r.metric for r in rows if r.kind == kind and r.budget == b] for b in budgets]
            if found:
                shares = [100 * b for b in budgets]
                axes.plot(
                    shares, [np.mean(f) for f in found], "o-", color=color, markersize=2.5, linewidth=1.3, label=kind
                )
                axes.fill_between(
                    shares, [min(f) for f in found], [max(f) for f in found], color=color, alpha=0.2, linewidth=0
                )
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(color="#e6e9ec")
    for axes in panels[len(of) :]:
        axes.remove()
    labels = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(labels.values(), labels, loc="outside upper left", ncols=len(labels), fontsize=8, frameon=False)
    figure.supxlabel("MACs, % of the teacher", fontsize=8)
    figure.supylabel("validation metric before training, %", fontsize=8)
    with atomic(path) as part:
        figure.savefig(part, dpi=110)


def _line(name: str, cells: Sequence[float]) -> str:
    half = len(cells) // 2
    return f"| {name} | {' | '.join(f'{c:.1%}' for c in cells[:half])} | {' | '.join(f'{c:.3f}' for c in cells[half:])} |"
