"""Saved policies at several budgets: their students, made without a search, beside the uniform ones and those of a search at each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.files import JsonLines
from compress_env.registry import load_attribute
from compress_env.search.run import find_agent, search
from compress_env.search.store import alone_in

BUDGETS = tuple(round(0.2 + 0.6 * i / 9, 3) for i in range(10))
"""Ten shares of the MACs, from 20 to 80 %."""
FILE = "rows.jsonl"
UNIFORM, POLICY, SEARCH = "uniform", "policy", "search"


@dataclass(frozen=True)
class Row:
    """A student: of the uniform policy, of a saved one, or the best of a search with an agent.

    which: file of the policy, or agent, evaluations and seed of the search. Accuracy and reward are of validation images, right after
    the refit; accuracies in [0, 1].
    """

    budget: float
    kind: str
    which: str
    accuracy: float
    reward: float
    teacher_accuracy: float


def compare(
    files: Sequence[str], budgets: Sequence[float], agent: str, evaluations: int, seeds: Sequence[int], out: Path,
    *, progress: bool = True, **environment: Any,
) -> list[Row]:  # fmt: skip
    """A row for each policy and search at each budget (share of the MACs); what `out/rows.jsonl` has is not made again.

    evaluations: of each search; 0 leaves searches out. environment: arguments of `LayerRemoval-v0`. Raises UserError for files
    that are no policies, and for rows of other settings.
    """
    players = [(UNIFORM, "", ("uniform", 1, 0, None, None))]
    for file in map(str, files):
        load_attribute("compress_env.agents.saved:load_policy", "policy")(file)  # refuse before the teacher is loaded
        players.append((POLICY, file, ("policy", 1, 0, None, {"file": file})))
    find_agent(agent)
    for seed in seeds if evaluations else ():
        which = f"{agent}, {evaluations} evaluations, seed {seed}"
        players.append((SEARCH, which, (agent, evaluations, seed, out / "runs" / which, None)))
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        results = JsonLines(out / FILE, Row, header=True)
        known = {(r.budget, r.kind, r.which) for r in results.begin({k: str(v) for k, v in environment.items()})}
        todo = [(b, *player) for b in budgets for player in players if (b, *player[:2]) not in known]
        env, at = None, None
        for budget, kind, which, (name, episodes, seed, folder, own) in tqdm(
            todo, desc="budgets", unit="student", disable=not progress
        ):
            if budget != at:
                env, at = LayerRemovalEnv(**environment, budget={"macs": budget}), budget
            where = folder and folder / f"{budget:g}"
            best = search(env, name, episodes, seed, where, progress=False, settings=own).best
            results.append(Row(budget, kind, which, best.outcome.accuracy, best.reward, best.outcome.teacher_accuracy))
    chosen = {player[:2] for player in players}
    return [r for r in results.read() if r.budget in budgets and (r.kind, r.which) in chosen]


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line a budget and one of their means: accuracy and reward, averaged over policies and over searches."""
    lines = [
        "| MACs | uniform | policy | search | policy against search | reward: uniform | policy | search |",
        "|---" * 8 + "|",
    ]
    cells: list[list[float]] = []
    for budget in sorted({r.budget for r in rows}):
        own = [[r for r in rows if r.budget == budget and r.kind == kind] for kind in (UNIFORM, POLICY, SEARCH)]
        accuracy = [float(np.mean([r.accuracy for r in of])) if of else np.nan for of in own]
        reward = [float(np.mean([r.reward for r in of])) if of else np.nan for of in own]
        cells.append([*accuracy, 100 * (accuracy[1] - accuracy[2]), *reward])
        lines.append(_line(f"{budget:.0%}", cells[-1]))
    lines.append(_line("mean", np.mean(cells, 0).tolist()))
    return "\n".join(lines).replace("nan%", "-").replace("+nan", "-").replace("nan", "-")


def report(folder: Path) -> str:
    """Markdown tables of the results files `*.jsonl` in `folder`, each under its name (its teacher's for `rows.jsonl`).

    A picture of all, `zero-shot.png`, is drawn beside them. Raises UserError if there are none.
    """
    of: dict[str, list[Row]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        results = JsonLines(file, Row, header=True)
        if rows := results.read():
            of[results.settings["teacher"] if file.name == FILE else file.stem] = rows
    if not of:
        raise UserError(f"there are no results in {folder}; `compress-env bench policy --out {folder}` makes them")
    picture(of, folder / "zero-shot.png")
    return "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in of.items())


def picture(of: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A PNG with a panel for each title of `of`: validation accuracy of its students by MACs; of several policies mean and range."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(of)))
    lines = -(-len(of) // columns)
    figure = Figure(figsize=(0.5 + 2.9 * columns, 0.5 + 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (title, rows) in zip(panels, of.items()):
        for kind, color in ((UNIFORM, "#6b7680"), (POLICY, "#1f5fa8"), (SEARCH, "#d9822b")):
            budgets = sorted({r.budget for r in rows if r.kind == kind})
            found = [[100 * r.accuracy for r in rows if r.kind == kind and r.budget == b] for b in budgets]
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
    figure.legend(labels.values(), labels, loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    figure.supxlabel("MACs, % of the teacher", fontsize=8)
    figure.supylabel("validation accuracy before training, %", fontsize=8)
    figure.savefig(path, dpi=110)


def _line(name: str, cells: Sequence[float]) -> str:
    accuracy = " | ".join(f"{c:.1%}" for c in cells[:3])
    return f"| {name} | {accuracy} | {cells[3]:+.1f} | {' | '.join(f'{c:.3f}' for c in cells[4:])} |"
