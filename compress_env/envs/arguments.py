"""The arguments of environments as documentation shows them: their signature, and a table."""

from __future__ import annotations

import inspect
from dataclasses import fields

from compress_env.settings import Settings
from compress_env.spec import EnvironmentSpec, ProblemSpec, keywords


def signature(*further: inspect.Parameter) -> inspect.Signature:
    """The environment's signature, for `help()` and editors: `further` parameters, and every keyword with its default."""
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(n, kind, default=d) for n, d in keywords().items()]
    return inspect.Signature(sorted([*further, *own], key=lambda p: p.kind))


def arguments_table() -> str:
    """Markdown, a line a keyword of the environment, for its documentation."""
    helps = {f.name: f.metadata["help"] for f in (*fields(ProblemSpec), *fields(EnvironmentSpec))}
    defaults = {n: d.to_json() if isinstance(d, Settings) else d for n, d in keywords().items()}
    lines = [f"    | {n} | {d!r} | {helps[n].replace(' May be repeated.', '')} |" for n, d in defaults.items()]
    return "\n".join(["    | Name | Default | Meaning |", "    |------|---------|---------|", *lines])
