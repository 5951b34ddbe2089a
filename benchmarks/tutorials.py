"""Follows pages of docs/ as a reader would: files are saved, commands and code are run in their order, and minutes are taken.

Each page has a folder of its own. A block of Python whose first line is `# NAME.py` is saved under that name, other Python is run; of
blocks without a language, those whose lines begin with a command are run, and the others are what commands print.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
COMMANDS = {"compress-env": f"{sys.executable} -m compress_env", "python": sys.executable}


def steps(page: Path) -> list[tuple[str, str]]:
    """What a page has its reader do, in order: pairs of (a file's name, its text), ("python", code) or ("command", line)."""
    found = []
    for language, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in ("python", "{code-cell}"):
            named = re.match(r"# (\w+\.py)\n", body)
            found.append((named[1] if named else "python", body))
        elif not language:
            lines = body.strip().splitlines()
            if all(line.split()[0] in COMMANDS for line in lines):
                found += [("command", line) for line in lines]
    return found


def follow(page: Path, folder: Path) -> tuple[int, float]:
    """Do all of it in a folder; how many steps there were, and seconds. Raises CalledProcessError at the first that fails."""
    begun, code, done = time.perf_counter(), "", steps(page)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for kind, text in done:
        if kind == "command":
            name, _, rest = text.partition(" ")
            print(f"$ {text}", flush=True)
            subprocess.run(f"{COMMANDS[name]} {rest}", shell=True, cwd=folder, env=environment, check=True)
        elif kind == "python":
            code += text  # later cells go on with the names of earlier ones
        else:
            (folder / kind).write_text(text)
    if code:
        subprocess.run([sys.executable, "-c", code], cwd=folder, env={**environment, "MPLBACKEND": "agg"}, check=True)
    return len(done), time.perf_counter() - begun


@click.command(help=(__doc__ or "").replace("\n\n", "\n\n\b\n", 1))
@click.argument("pages", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder that pages get folders in.")
def main(pages: tuple[Path, ...], out: Path) -> None:
    rows = []
    for page in pages or PAGES:
        folder = out / page.stem
        folder.mkdir(parents=True)
        rows.append((page.name, *follow(page.resolve(), folder)))
    print("\n| page | steps | minutes |\n|---|---|---|")
    for name, count, seconds in rows:
        print(f"| {name} | {count} | {seconds / 60:.1f} |")


if __name__ == "__main__":
    main()
