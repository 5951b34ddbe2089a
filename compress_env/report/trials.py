"""Trials as text for the terminal, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json

from compress_env.report.formats import DASH, columns
from compress_env.search.trials import Trials

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
"""Characters that LaTeX takes for commands."""


def as_csv(trials: Trials) -> str:
    """All columns of `Trials.to_rows`, a line a trial under one of names."""
    rows = trials.to_rows()
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def as_json(trials: Trials) -> str:
    """The same as a list of objects, in which the plan is an object, too."""
    return json.dumps([row | {"plan": json.loads(row["plan"])} for row in trials.to_rows()], indent=2)


def as_latex(trials: Trials) -> str:
    """The chief columns as a `tabular` with the rules of the package booktabs."""
    head, rows = trials.chief()
    lines = (" & ".join("".join(SPECIAL.get(c, c) for c in cell) for cell in row) + r" \\" for row in (head, *rows))
    first, *rest = (line.replace(DASH, "--") for line in lines)
    begin = rf"\begin{{tabular}}{{{'r' * len(head)}}}"
    return "\n".join([begin, r"\toprule", first, r"\midrule", *rest, r"\bottomrule", r"\end{tabular}"])


def as_text(trials: Trials) -> str:
    """The chief columns, for the terminal."""
    head, rows = trials.chief()
    return columns([head, *rows])
