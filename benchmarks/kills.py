"""Kills (SIGKILL, which no program can catch) at random moments of a search, which is resumed each time, against a search in peace.

Each search is the command `compress-env search`, in a process of its own that is killed at a random moment: while it starts, while it
evaluates or learns, while it writes. After the last kill it is resumed once more and left alone. Then: no trial that was on the disk
is lost or was written again; none is there twice; and all trials equal those of the search in peace in everything but their seconds.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from tqdm.auto import tqdm

from benchmarks.long_run import command
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial

POLL = 0.005
"""Seconds between two looks at a search that is to be killed."""
START, LATER = 4.0, 0.1
"""Seconds after the start, and after a trial was written, up to which the moment of a kill is drawn."""


@dataclass(frozen=True)
class Outcome:
    """What came of the kills of one search.

    Attributes:
        agent: The agent.
        evaluations: How many were asked for.
        kills: How many there were.
        trials_at: Trials on the disk after each kill.
        torn: Kills after which the last line of trials was cut off.
        lost: Trials that were on the disk after a kill and not, or otherwise, after a later one.
        twice: Evaluated students with the plan of an earlier one.
        same: Whether all trials equal those of the search in peace.
    """

    agent: str
    evaluations: int
    kills: int
    trials_at: tuple[int, ...]
    torn: int
    lost: int
    twice: int
    same: bool

    @property
    def holds(self) -> bool:
        """Whether nothing was lost or done twice, and the outcome is that of the search in peace."""
        return not self.lost and not self.twice and self.same


def complete_lines(file: Path) -> tuple[list[bytes], bool]:
    """The whole lines of a file, and whether something is after them."""
    lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
    return lines[:-1], bool(lines[-1])


def differing(before: list[bytes], after: list[bytes]) -> int:
    """How many of the lines from before are not the same afterwards."""
    return sum(line != (after[i] if i < len(after) else None) for i, line in enumerate(before))


def compare(
    agent: str, trials: list[Trial], peaceful: list[Trial], states: list[tuple[list[bytes], bool]], last: list[bytes]
) -> Outcome:
    """The outcome.

    Args:
        agent: The agent.
        trials: Of the search that was killed, in the end.
        peaceful: Of the other one.
        states: Lines of trials after each kill, and whether the last was torn.
        last: Lines in the end.
    """
    later = [*(lines for lines, _ in states[1:]), last]
    lost = sum(differing(before, after) for (before, _), after in zip(states, later))
    fresh = [trial.plan for trial in trials if not trial.repeated]
    same = len(trials) == len(peaceful) and all(a.same(b) for a, b in zip(trials, peaceful))
    return Outcome(
        agent, len(peaceful), len(states), tuple(len(lines) for lines, _ in states), sum(torn for _, torn in states), lost,
        len(fresh) - len(set(fresh)), same,
    )  # fmt: skip


def run(arguments: list[str], until: Callable[[], bool] = lambda: False) -> bool:
    """Run a command to its end, or kill it as soon as `until` holds; whether it was killed. Raises if it fails by itself."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            if until():
                process.kill()
                process.wait()
                return True
            time.sleep(POLL)
        if process.returncode:
            said.seek(0)
            raise click.ClickException(f"{' '.join(arguments)} ended with exit code {process.returncode}: {said.read()[-500:]}")
    return False


def moment(file: Path, evaluations: int, kills: int, rng: random.Random) -> Callable[[], bool]:
    """When to kill: one in five times while it starts, else when some more trials are on the disk, and then a moment later."""
    if rng.random() < 0.2:
        end = time.perf_counter() + rng.uniform(0, START)
        return lambda: time.perf_counter() >= end
    enough, later = len(complete_lines(file)[0]) + rng.randint(1, max(1, 2 * evaluations // kills)), rng.uniform(0, LATER)
    reached: list[float] = []

    def now() -> bool:
        if not reached and len(complete_lines(file)[0]) >= enough:
            reached.append(time.perf_counter())
        return bool(reached) and time.perf_counter() >= reached[0] + later

    return now


def attack(agent: str, evaluations: int, kills: int, out: Path, rng: random.Random) -> Outcome:
    """A search in peace, one that is killed and resumed, and what came of it; their folders are in `out`, made anew."""
    peace, war = out / f"{agent}-in-peace", out / agent
    for folder in (peace, war):
        shutil.rmtree(folder, ignore_errors=True)
    run(command(agent, evaluations, peace))
    states: list[tuple[list[bytes], bool]] = []
    resumed = [*command(agent, evaluations, war), "--resume"]
    with tqdm(total=kills, desc=f"{agent}, kills") as bar:
        while len(states) < kills:
            if not run(resumed, moment(war / "trials.jsonl", evaluations, kills, rng)):
                break  # it came to its end before
            states.append(complete_lines(war / "trials.jsonl"))
            bar.update()
            bar.set_postfix_str(f"{len(states[-1][0])} trials")
    run(resumed)
    last, _ = complete_lines(war / "trials.jsonl")
    return compare(agent, RunFolder(war).trials(), RunFolder(peace).trials(), states, last)


def table(outcomes: list[Outcome]) -> str:
    """Markdown, a line an agent."""
    lines = [
        "| agent | evaluations | kills | trials on the disk after each | cut-off lines | lost or changed | evaluated twice "
        "| same trials |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        at = ", ".join(map(str, o.trials_at))
        lines.append(
            f"| `{o.agent}` | {o.evaluations} | {o.kills} | {at} | {o.torn} | {o.lost} | {o.twice} | {'yes' if o.same else 'NO'} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--agent", "agents", multiple=True, default=["ddpg", "random", "tpe"], show_default=True, help="Repeat it for several.")
@click.option("--kills", type=click.IntRange(0), default=20, show_default=True)
@click.option("--evaluations", type=click.IntRange(1), default=400, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/kills"), show_default=True, help="Where the searches are.")
def main(agents: tuple[str, ...], kills: int, evaluations: int, seed: int, out: Path) -> None:
    """The command; its help is that of the module."""
    rng = random.Random(seed)
    outcomes = [attack(agent, evaluations, kills, out, rng) for agent in agents]
    click.echo(table(outcomes))
    if not all(outcome.holds for outcome in outcomes):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
