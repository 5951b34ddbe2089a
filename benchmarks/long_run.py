"""A week-long search in miniature: what grows while a search goes on for thousands of evaluations, and how long it takes to resume it.

Each search is the command `compress-env search` in a process of its own, which is watched from outside: its memory, how many trials it
has recorded and the size of its run folder, once a second. When it is over, the same command with --resume has nothing left to
evaluate; its processor time is measured whole, and without that of a new search that evaluates one student. A search whose folder is
there is only resumed. Linux only.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from compress_env.files import JsonLines
from compress_env.search.store import RunFolder

PERIOD = 1.0
"""Seconds between two looks."""
WINDOW = 50
"""Evaluations in a mean of their time."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Look:
    """A search at a moment, or, where `resume` is given, what came after it.

    Attributes:
        agent: The agent.
        trials: How many were recorded.
        seconds: Since it was begun.
        memory_mb: Resident memory of the process.
        store_mb: Of all files in the run folder.
        resume: Seconds of processor time of `--resume` when all is done, less those of a new search with one evaluation.
        resume_whole: The same with all that the process does.
    """

    agent: str
    trials: int
    seconds: float
    memory_mb: float
    store_mb: float
    resume: float | None = None
    resume_whole: float | None = None


def command(agent: str, evaluations: int, out: Path, settings: Sequence[str] = ()) -> list[str]:
    """The command line of a search on digits; `settings` are the agent's own, `name=value`."""
    options = f"-m compress_env search --agent {agent} --evaluations {evaluations} --finetune-epochs 0 --out".split()
    return [sys.executable, *options, str(out), *(word for setting in settings for word in ("--agent-option", setting))]


def timed(arguments: list[str]) -> float:
    """Seconds of processor time that a command takes, whatever else the machine does meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def store_mb(folder: Path) -> float:
    """The size of all files in a folder, in MB."""
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) / 1e6


def watch(agent: str, evaluations: int, out: Path, looks: JsonLines[Look], settings: Sequence[str]) -> None:
    """Run a search, and note how it is once a second."""
    folder, began = out / agent, time.perf_counter()
    trials = folder / "trials.jsonl"
    process = subprocess.Popen(command(agent, evaluations, folder, settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with tqdm(total=evaluations, desc=agent) as bar:
        while process.poll() is None:
            time.sleep(PERIOD)
            count = trials.read_bytes().count(b"\n") if trials.exists() else 0
            try:
                memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE / 1e6
            except (OSError, IndexError):
                break
            if memory:  # it has not ended
                looks.append(Look(agent, count, round(time.perf_counter() - began, 1), round(memory, 1), round(store_mb(folder), 3)))
            bar.update(count - bar.n)
    if process.wait():
        raise click.ClickException(f"the search with {agent} ended with exit code {process.returncode}; run it by itself to see why")


def resume(agent: str, evaluations: int, out: Path, looks: JsonLines[Look], settings: Sequence[str]) -> None:
    """Resume a search that is over, and note how long that took."""
    folder = out / agent
    whole = timed([*command(agent, evaluations, folder, settings), "--resume"])
    with tempfile.TemporaryDirectory() as other:
        start = timed(command("random", 1, Path(other), ()))
    last = Look(agent, evaluations, 0.0, 0.0, round(store_mb(folder), 3), round(whole - start, 2), round(whole, 2))
    looks.append(last)


def draw(rows: list[Look], out: Path) -> Path:
    """The picture: seconds an evaluation, memory and size of the run folder over the evaluations, a line an agent."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for agent in dict.fromkeys(row.agent for row in rows):
        found = [row for row in rows if row.agent == agent and row.resume is None and row.trials]
        seconds = [trial.seconds for trial in RunFolder(out / agent).trials()]
        means = [float(np.mean(seconds[i : i + WINDOW])) for i in range(0, len(seconds), WINDOW)]
        panels[0].plot(WINDOW * np.arange(len(means)) + WINDOW / 2, means, label=agent)
        panels[1].plot([row.trials for row in found], [row.memory_mb for row in found], label=agent)
        panels[2].plot([row.trials for row in found], [row.store_mb for row in found], label=agent)
    for axes, label in zip(panels, (f"seconds an evaluation, mean of {WINDOW}", "memory of the process, MB", "run folder, MB")):
        axes.set(xlabel="evaluations", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    figure.savefig(out / "long_run.png", dpi=90)
    return out / "long_run.png"


def table(rows: list[Look], out: Path) -> str:
    """Markdown, a line an agent: the first and the last fifth of the search beside one another, and what is left of it."""
    lines = [
        "| agent | evaluations | s an evaluation, first fifth | last fifth | MB of memory, first fifth | end | run folder, MB "
        "| resume, s | with start-up |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for end in {row.agent: row for row in rows if row.resume is not None}.values():
        looks = [row for row in rows if row.agent == end.agent and row.resume is None]
        seconds = [trial.seconds for trial in RunFolder(out / end.agent).trials()]
        fifth = max(1, len(seconds) // 5)
        early = max([row.memory_mb for row in looks if row.trials <= fifth], default=float("nan"))
        lines.append(
            f"| `{end.agent}` | {len(seconds):,} | {np.mean(seconds[:fifth]):.4f} | {np.mean(seconds[-fifth:]):.4f} | {early:.0f} | "
            f"{looks[-1].memory_mb:.0f} | {end.store_mb:.1f} | {end.resume:.1f} | {end.resume_whole:.1f} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--agent", "agents", multiple=True, default=["random", "ddpg"], show_default=True, help="Repeat it for several.")
@click.option("--agent-option", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the agents; repeatable.")
@click.option("--evaluations", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/long"), show_default=True, help="Looks, picture and runs.")
def main(agents: tuple[str, ...], settings: tuple[str, ...], evaluations: int, out: Path) -> None:
    """The command; its help is that of the module."""
    looks = JsonLines(out / "looks.jsonl", Look)
    for agent in agents:
        if not (out / agent).exists():
            watch(agent, evaluations, out, looks, settings)
        resume(agent, evaluations, out, looks, settings)
    rows = looks.read()
    click.echo(table(rows, out))
    click.echo(draw(rows, out))


if __name__ == "__main__":
    main()
