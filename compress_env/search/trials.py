"""`Trials`: a list of trials that is a table, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress_env.extras import need
from compress_env.report.formats import DASH, html_table
from compress_env.search.trial import Trial, ranked

if TYPE_CHECKING:
    import pandas


SHOWN = 50
"""Rows at most, in a notebook."""


class Trials(list[Trial]):
    """The trials of a search, in their order."""

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat row of numbers, truth values and texts for each trial, all with the same columns.

        Columns: `index`, `reward`, the task's metrics by name (`accuracy`), `teacher_accuracy` and the like, `kl` (nats, None where
        it is not measured), for each resource its usage in its unit (`macs`), as a share of the teacher's (`macs_share`) and its
        limit, if it has one (`macs_limit`), `feasible`, `repeated`, `failed` (the reason, or ""), `seconds`, `seed`, and `plan`.
        """
        rows = [_row(trial) for trial in self]
        columns = dict.fromkeys(name for row in rows for name in row)
        return [{name: row.get(name) for name in columns} for row in rows]

    def best_first(self) -> Trials:
        """Those that meet the budget before the others, then by reward; repeated plans are left out."""
        return Trials(ranked(self))

    def chief(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows, as text: number, reward, metrics, KL, shares of limited resources, whether they fit, blocks removed."""
        if not self:
            return ["trial"], []
        metrics, limited = list(self[0].evaluation.metrics), list(self[0].limits)
        head = ["trial", "reward", *metrics, "kl", *(f"{name}, %" for name in limited), "fits", "removed"]
        rows = []
        for trial, row in zip(self, self.to_rows()):
            numbers = [row["reward"], *(row[name] for name in metrics), row["kl"]]
            shares = [row[f"{name}_share"] for name in limited]
            fits = "failed" if row["failed"] else "yes" if row["feasible"] else "no"
            cells = [*(_number(n, 4) for n in numbers), *(_number(s and 100 * s, 1) for s in shares)]
            rows.append([str(trial.index), *cells, fits, str(len(trial.plan.removed))])
        return head, rows

    def to_dataframe(self) -> pandas.DataFrame:
        """The rows as a data frame of pandas. Raises UserError with the command that installs it, if it is missing."""
        need("a data frame of trials", "pandas")
        import pandas

        return pandas.DataFrame(self.to_rows())

    def _repr_html_(self) -> str:
        head, rows = Trials(self[:SHOWN]).chief()
        return html_table(head, rows, f"The first {SHOWN} of {len(self)} trials" if len(self) > SHOWN else "")


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _row(trial: Trial) -> dict[str, Any]:
    evaluation = trial.evaluation
    row: dict[str, Any] = {"index": trial.index, "reward": trial.reward, **evaluation.metrics}
    row |= {f"teacher_{name}": value for name, value in evaluation.teacher_metrics.items()} | {"kl": evaluation.kl}
    for name, used in evaluation.usage.items():
        whole = evaluation.teacher_usage[name]
        row |= {name: used, f"{name}_share": used / whole if whole else None}
        if name in trial.limits:
            row[f"{name}_limit"] = trial.limits[name]
    return row | {
        "feasible": trial.feasible, "repeated": trial.repeated, "failed": evaluation.failed or "", "seconds": trial.seconds,
        "seed": trial.seed, "plan": trial.plan.to_json(),
    }  # fmt: skip
