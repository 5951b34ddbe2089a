"""Students at several budgets beside each other: the table, the picture and the page of a folder that a curve was made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress_env.files import write_json, write_text
from compress_env.report import plots
from compress_env.report.formats import DASH, html_table, metric, percent, quantity, unit_beside
from compress_env.report.tables import ratio
from compress_env.search.result import NetworkResult, ResourceName, Result

FORMAT = 1
"""Of `curve.json`; counted up when an older one cannot be read any more."""
DATA, TABLE, PICTURE, PAGE = "curve.json", "curve.md", "curve.svg", "report.html"


@dataclass(frozen=True)
class CurveRow:
    """A student at one of the budgets; all numbers are those of `result.json` in its folder.

    Attributes:
        budget: The limit on the resource that differs, as it was given.
        agent: The agent whose student it is; `uniform` is the one that is not searched for.
        folder: Name of its run folder.
        evaluations: Students that were judged for it.
        limits: All limits, in each resource's unit.
        feasible: Whether it meets them.
        student: Its measurements, the metric on test data that no search saw.
        teacher: The teacher's, measured beside it.
    """

    budget: str
    agent: str
    folder: str
    evaluations: int
    limits: Mapping[str, float]
    feasible: bool
    student: NetworkResult
    teacher: NetworkResult

    @classmethod
    def of(cls, budget: str, folder: str, result: Result) -> CurveRow:
        """The row of a run's outcome."""
        limits = dict(result.budget)
        return cls(budget, result.agent, folder, result.evaluations, limits, result.feasible, result.student, result.teacher)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; the usage of the networks stands beside their other numbers, as in `result.json`."""
        found = asdict(self)
        for part in ("student", "teacher"):
            found[part] |= found[part].pop("usage")
        return found


@dataclass(frozen=True)
class CurveTable:
    """What is known of a curve so far.

    Attributes:
        name: The teacher's.
        resource: The resource whose limit differs.
        metric: Name of the task's main metric.
        runtime: What measured resources were measured with.
        resources: Label and unit of every resource.
        rows: By rising budget, the agent's student before the uniform one.
    """

    name: str
    resource: str
    metric: str
    runtime: str
    resources: Mapping[str, ResourceName]
    rows: tuple[CurveRow, ...]

    @property
    def teacher(self) -> NetworkResult:
        """The teacher's measurements, as beside the first student."""
        return self.rows[0].teacher

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict, the content of `curve.json` beside the names of all runs."""
        teacher = asdict(self.teacher)
        rows = [row.to_json() for row in self.rows]
        names = {name: asdict(resource) for name, resource in self.resources.items()}
        return {
            "format": FORMAT, "teacher_name": self.name, "resource": self.resource, "metric": self.metric, "runtime": self.runtime,
            "resources": names, "teacher": teacher | teacher.pop("usage"), "rows": rows,
        }  # fmt: skip

    def head(self) -> list[str]:
        """The first line of the table."""
        return ["budget", "student", f"test {self.metric}", *(r.label for r in self.resources.values()), "file size"]

    def cells(self) -> list[list[str]]:
        """The other lines: the teacher, then a row a student; its shares are of the teacher as measured beside it."""
        students = ([row.budget, row.agent, *self._numbers(row.student, row)] for row in self.rows)
        return [["", "teacher", *self._numbers(self.teacher, None)], *students]

    def _numbers(self, network: NetworkResult, row: CurveRow | None) -> list[str]:
        found = [metric(network.metric_test)]
        for name, resource in self.resources.items():
            used = network.usage.get(name)
            share = f" ({percent(ratio(used, row.teacher.usage.get(name)), 1)})" if row else ""
            found.append(DASH if used is None else quantity(used, unit_beside(resource.label, resource.unit)) + share)
        share = f" ({percent(ratio(network.file_bytes, row.teacher.file_bytes), 1)})" if row else ""
        return [*found, quantity(network.file_bytes, "bytes") + share]

    def text(self) -> str:
        """The table in Markdown."""
        head, rows = self.head(), self.cells()
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in (head, *rows)]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

    def picture(self) -> str:
        """An `<svg>` element: the test metric, what is measured, and file size against the budget."""
        label, scale = self.resources[self.resource].label, 100 if 0 <= self.teacher.metric_test <= 1 else 1
        panels = [self._panel(f"test {self.metric}{', %' if scale > 1 else ''}", lambda network: scale * network.metric_test)]
        for name, resource in self.resources.items():
            if resource.measured:
                panels.append(self._panel(f"{resource.label}, {resource.unit}", partial(_usage, name)))
        panels.append(self._panel("file size, KB", lambda network: network.file_bytes / 1e3))
        return plots.curves(f"budget: {label}, % of the teacher", panels)

    def _panel(self, label: str, number: Callable[[NetworkResult], float]) -> plots.Panel:
        """A number of the students of each agent by their budgets, in % of the teacher."""
        series: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            share = 100 * row.limits[self.resource] / row.teacher.usage[self.resource]
            series.setdefault(row.agent, []).append((share, number(row.student)))
        return plots.Panel(label, number(self.teacher), series)

    def headline(self) -> str:
        """One sentence about all of it."""
        budgets = list(dict.fromkeys(row.budget for row in self.rows))
        label = self.resources[self.resource].label
        return f"{self.name} at {len(budgets)} budgets of {label}: {', '.join(budgets)}"

    def _repr_html_(self) -> str:
        return html_table(self.head(), self.cells(), self.headline())


def _usage(resource: str, network: NetworkResult) -> float:
    return network.usage[resource]


def write_curve(folder: Path, table: CurveTable, runs: Sequence[str]) -> None:
    """Write table, picture and page.

    Args:
        folder: The folder that the run folders are in.
        table: What is known so far, at least one row.
        runs: Names of all run folders that are to be in it.
    """
    write_json(folder / DATA, table.to_json() | {"runs": list(runs)})
    write_text(folder / TABLE, table.text() + "\n")
    picture = table.picture()
    write_text(folder / PICTURE, plots.as_file(picture))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    links = ["", *(f"{quote(row.folder)}/report.html" for row in table.rows)]
    write_text(folder / PAGE, environment.get_template("curve.html.j2").render(
        headline=table.headline(), head=table.head(), rows=list(zip(links, table.cells())), picture=Markup(picture),
        runtime=table.runtime, missing=[name for name in runs if name not in {row.folder for row in table.rows}],
    ))  # fmt: skip
