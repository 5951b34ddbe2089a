"""`bench report`: a results file as Markdown, pictures and one HTML page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compress_env.bench.retrained import Retrained, of_agent, records
from compress_env.bench.run import Run, Table, load
from compress_env.bench.scenarios import SCENARIOS
from compress_env.bench.statistics import hypervolume, improvement, interval, iqm, percent, profile
from compress_env.files import atomic, make_folder, write_text

REFERENCE = "random"
"""What every agent has to beat."""
ENOUGH = 3
"""Seeds from which an interval is given; two say next to nothing of how much runs differ."""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>compress-env bench</title><style>
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem; color: #1f2933; font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; } h2 { margin: 2rem 0 .5rem; font-size: 1.15rem; } h1, h2, pre, td:first-child { overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } img { max-width: 100%; }
th, td { padding: .3rem 0 .3rem 1.2rem; border-bottom: 1px solid #dfe4e8; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { max-width: 9.5rem; } .scroll { overflow-x: auto; }
pre { background: #f4f6f8; padding: .75rem; white-space: pre-wrap; } tr, img { break-inside: avoid; }
@media (max-width: 600px) {
  body { padding: .8rem; } thead { display: none; } table, tbody, tr { display: block; } tr { margin-bottom: 1rem; }
  td { display: flex; justify-content: space-between; gap: 1rem; padding-left: 0; } td:first-child { font-weight: 600; }
  td + td::before { content: attr(data-label); color: #5b6770; text-align: left; }
}
@media print { html { font-size: 8.5pt; } body { padding: 0; } .scroll { overflow: visible; } }
</style></head><body><h1>Agents compared</h1><p>{{ note }}</p>
{% for part in parts %}<h2>{{ part.title }}</h2><div class="scroll"><table><thead>
<tr>{% for c in part.head %}<th>{{ c }}</th>{% endfor %}
</tr></thead><tbody>{% for row in part.rows %}<tr>{% for c in row %}
<td data-label="{{ part.head[loop.index0] }}">{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% if part.picture %}<img alt="{{ part.title }}" src="data:image/png;base64,{{ part.picture }}">{% endif %}
{% endfor %}<p>Made by</p><pre>{{ command }}</pre></body></html>"""
HEAD = (
    "agent", "seeds", "best found, IQM [95 %]", "final policy, IQM", "first and last tenth, mean",
    f"P(better than {REFERENCE}) [95 %]", "hypervolume", "seconds",
)  # fmt: skip


def scores(runs: Sequence[Run]) -> np.ndarray:
    """Rewards `(1, seeds)` of the best students."""
    return np.array([[r.best[-1] for r in runs]])


def rows(
    agents: Mapping[str, Sequence[Run]], found: Mapping[tuple[str, str, int], Retrained] | None = None
) -> list[list[str]]:
    """A row an agent, the best first; with winners that were distilled, by scenario, plan and seed, a last column of them."""
    table = []
    for agent, runs in sorted(agents.items(), key=lambda item: -iqm(scores(item[1]))):
        own, final = scores(runs), [r.final for r in runs if r.final is not None]
        chance = "-"
        if agent != REFERENCE and REFERENCE in agents:
            chance = _with_interval(2, improvement, own, scores(agents[REFERENCE]))
        table.append([
            agent, str(len(runs)), _with_interval(4, iqm, own), f"{iqm(np.array(final)):.4f}" if final else "-",
            _tenths(runs), chance, f"{np.mean([hypervolume(r.front) for r in runs]):.3f}",
            f"{np.mean([r.seconds[-1] for r in runs]):.0f}",
        ])  # fmt: skip
        if found:
            tests = [done.test for done in of_agent(runs, found)]
            told = percent(tests) if len(tests) >= ENOUGH else f"{np.mean(tests):.2%}" if tests else ""
            table[-1].append(f"{told} ({len(tests)})" if tests else "-")
    return table


def _with_interval(digits: int, statistic: Callable[..., float], *tables: np.ndarray) -> str:
    """A statistic of scores `(scenarios, seeds)`, with its interval where the seeds of each are enough for one."""
    value = f"{statistic(*tables):.{digits}f}"
    if min(table.shape[1] for table in tables) < ENOUGH:
        return value
    low, high = interval(statistic, *tables)
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def _tenths(runs: Sequence[Run]) -> str:
    """Mean rewards of the first and the last tenth of searches; older files do not have the first."""
    first = [r.mean_first for r in runs if r.mean_first is not None]
    return f"{np.mean(first):.4f}" * bool(first) + f", {np.mean([r.mean_last for r in runs]):.4f}"


def duels(agents: Mapping[str, Sequence[Run]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the probabilities that the best student of the row's agent is better than that of the column's."""
    order = sorted(agents, key=lambda name: -iqm(scores(agents[name])))
    table = [
        [row, *("-" if row == c else f"{improvement(scores(agents[row]), scores(agents[c])):.2f}" for c in order)]
        for row in order
    ]
    return ["P(row better than column)", *order], table


def overall(table: Table) -> list[list[str]]:
    """Over all scenarios, for agents that played each: scores are first put between uniform's or the worst, and the best known."""
    agents = set.intersection(*(set(own) for own in table.values()))
    seeds = min(len(runs) for own in table.values() for runs in own.values())
    normal: dict[str, np.ndarray] = {}
    for agent in agents:
        lines = []
        for own in table.values():
            every = np.array([r.best[-1] for runs in own.values() for r in runs])
            low = np.mean([r.best[-1] for r in own.get("uniform", [])]) if "uniform" in own else every.min()
            mine = np.array([r.best[-1] for r in own[agent][:seeds]])
            lines.append((mine - low) / max(every.max() - low, 1e-9))
        normal[agent] = np.array(lines)
    result = []
    for agent in sorted(agents, key=lambda a: -iqm(normal[a])):
        chance = "-"
        if agent != REFERENCE and REFERENCE in agents:
            chance = _with_interval(2, improvement, normal[agent], normal[REFERENCE])
        shares = profile(normal[agent], np.array([0.5, 0.9]))
        result.append([agent, str(seeds), _with_interval(3, iqm, normal[agent]), chance, f"{shares[0]:.0%}", f"{shares[1]:.0%}"])
    return result


def picture(agents: Mapping[str, Sequence[Run]], title: str) -> bytes:
    """PNG: reward of the best student so far against evaluations and against seconds, IQM and 95 % interval over seeds."""
    colours = matplotlib.colormaps["tab20"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for i, (agent, runs) in enumerate(sorted(agents.items(), key=lambda item: -iqm(scores(item[1])))):
        curves = np.array([r.best for r in runs])
        middle = np.array([iqm(column) for column in curves.T])
        colour, style = colours(i % 20), "--" if runs[0].final is None else "-"
        evaluations = runs[0].measured + np.arange(1, len(middle) + 1)
        left.plot(evaluations, middle, style, color=colour, label=agent)
        if len(runs) >= ENOUGH:
            left.fill_between(
                evaluations,
                *np.quantile(curves, [0.25, 0.75], axis=0),
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        right.plot(np.median([r.seconds for r in runs], axis=0), middle, style, color=colour)
    floor = np.quantile([r.best[0] for runs in agents.values() for r in runs], 0.25)
    left.set(xlabel="evaluations, sensitivities among them", ylabel="reward of the best student so far", title=title, xscale="log")
    left.set_ylim(bottom=max(0.0, float(floor)))
    right.set(xlabel="seconds", title="the same against time", xscale="log")
    figure.legend(loc="outside right upper", fontsize=9, title="dashed: no learning")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def write(results: Path, out: Path, command: str) -> str:
    """Write `report.md`, a PNG a scenario and `report.html` into `out`.

    Args:
        results: A results file.
        out: The folder.
        command: The command line that asked for it, for the page.

    Returns:
        The Markdown.

    Raises:
        UserError: If there are no results.
    """
    table = load(results)
    distilled = records(results).read()
    make_folder(out)
    parts: list[dict[str, Any]] = []
    head: Sequence[str]
    if len(table) > 1:
        head = (
            "agent",
            "seeds",
            "normalised, IQM [95 %]",
            f"P(better than {REFERENCE}) [95 %]",
            "runs above half way",
            "above 90 %",
        )
        parts.append({"title": "All scenarios", "head": head, "rows": overall(table), "picture": None})
    for scenario, agents in table.items():
        runs = next(iter(agents.values()))
        about = getattr(SCENARIOS.known(scenario), "about", "of a user's own")
        title = f"{scenario}: {about}; {runs[0].evaluations} evaluations, {len(runs)} seeds"
        image = picture(agents, scenario)
        with atomic(out / (re.sub(r"[^\w.-]", "_", scenario) + ".png")) as file:
            file.write_bytes(image)
        found = {(r.scenario, r.plan, r.seed): r for r in distilled if r.scenario == scenario}
        head = (*HEAD, f"{distilled[0].epochs} epochs of distillation, test ± 95 % (seeds)") if found else HEAD
        own = {"title": title, "head": head, "rows": rows(agents, found)}
        parts.append(own | {"picture": base64.b64encode(image).decode()})
        if len(agents) > 2:
            head, lines = duels(agents)
            parts.append({"title": f"{scenario}: who beats whom", "head": head, "rows": lines, "picture": None})
    note = (
        "Rewards are those of the quick evaluation on validation images that the search sees. IQM: mean of the middle half of the "
        f"seeds. Shaded: that half. [95 %]: bootstrap over the seeds, from {ENOUGH} seeds on. Hypervolume: area that a run's students "
        "dominate in the plane of cost share and metric."
    )
    if distilled:
        note += " Distillation: the best student of each search distilled with a fresh seed; mean over searches, Student's t."
    html = Environment(autoescape=True).from_string(PAGE).render(parts=parts, note=note, command=command)
    write_text(out / "report.html", html)
    text = [note, ""]
    for part in parts:
        text += [
            f"## {part['title']}",
            "",
            _line(part["head"]),
            _line(["---"] * len(part["head"])),
            *map(_line, part["rows"]),
            "",
        ]
    text += ["Made by", "", f"    {command}", ""]
    write_text(out / "report.md", "\n".join(text))
    return "\n".join(text)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
