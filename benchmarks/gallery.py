"""Writes docs/examples.md: what each file of examples/ is, prints, and takes. Files whose packages are missing keep what is there.

Needs wandb and mlflow for all of it. Seconds are those of one core, start-up and sensitivities in the cache included.
"""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "examples.md"
SECTIONS = {
    "Search": ("quickstart", "my_agent", "my_reward", "my_resource"),
    "Your own network": ("my_teacher", "my_layer", "my_loss", "my_task"),
    "Further on": ("deploy", "without_gymnasium", "weights_and_biases", "mlflow_tracking"),
}
HEAD = """# Examples

This page shows what each file of `examples/` prints. Each is a script of less than 60 lines that runs as it is, on a CPU, and leaves
nothing behind; the tests run them all. `python -m benchmarks.gallery` writes this page.
"""


def entry(name: str, printed: str, seconds: float) -> str:
    """An example's part of the page: its docstring, how long it takes, what it prints."""
    path = ROOT / "examples" / f"{name}.py"
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title, _, rest = about.partition("\n\n")
    return (
        f"### {name}\n\n{title}\n\n{rest}\n\n[examples/{name}.py](../examples/{name}.py), {seconds:.0f} seconds of one core:\n\n"
        f"```\n{printed.rstrip()}\n```\n"
    )


def run(name: str) -> str | None:
    """Its part of the page, of a run; None if a package is missing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"], env=environment, capture_output=True, text=True
    )
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise click.ClickException(f"{name}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return entry(name, done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def known(page: str) -> dict[str, str]:
    """The parts of a page that was written before, by example."""
    return {part[1]: part[0] for part in re.finditer(r"^### (\w+)\n.*?^```\n.*?^```\n", page, re.M | re.S)}


def written(parts: Iterable[tuple[str, list[str]]]) -> str:
    """The whole page, of its sections."""
    return "\n".join([HEAD, *(f"## {title}\n\n" + "\n".join(entries) for title, entries in parts)])


@click.command(help=__doc__)
def main() -> None:
    before = known(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    bar, parts = tqdm(total=sum(map(len, SECTIONS.values())), unit="example"), []
    for title, names in SECTIONS.items():
        entries = []
        for name in names:
            entries.append(run(name) or before.get(name, ""))
            bar.update()
        parts.append((title, entries))
    bar.close()
    PAGE.write_text(written(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
