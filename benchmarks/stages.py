"""N2N's two stages in searches of `compress-env bench run --agent n2n`: what is best after each, as the tables of the paper have it.

Nothing is searched or trained: the numbers are those of the trials that the searches recorded.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial

HEAD = (
    "scenario, agent", "searches", "teacher", "stage 1: accuracy", "compression", "stage 1 and 2: accuracy", "compression",
    "reward 1, 2",
)  # fmt: skip


def best_after(trials: list[Trial], stage: int) -> Trial | None:
    """The student with the highest reward within the budget after the first half of the trials (stage 1), or all of them (stage 2)."""
    seen = trials[: round(len(trials) / 2)] if stage == 1 else trials
    within = [t for t in seen if t.feasible and not t.evaluation.failed]
    return max(within, key=lambda t: t.reward, default=None)


def row(name: str, searches: list[list[Trial]]) -> list[str]:
    """A line of the table: means over searches, of those that found a student within the budget."""
    cells = [name, str(len(searches)), f"{100 * searches[0][0].evaluation.teacher_metric:.1f} %"]
    rewards = []
    for stage in (1, 2):
        found = [best for trials in searches if (best := best_after(trials, stage))]
        if not found:
            cells += ["none within the budget", "-"]
            rewards.append("-")
            continue
        cells.append(f"{100 * np.mean([t.evaluation.metric for t in found]):.1f} %")
        cells.append(f"{np.mean([1 / t.evaluation.size for t in found]):.1f}x")
        rewards.append(f"{np.mean([t.reward for t in found]):.3f}")
    return [*cells, ", ".join(rewards)]


def table(folder: Path) -> str:
    """Markdown, a line a scenario and an agent `n2n`, with whatever settings, in the folder of `bench run`."""
    lines = [HEAD, tuple("---" for _ in HEAD)]
    for agent in sorted((folder / "runs").glob("*/n2n*")):
        searches = [trials for seed in sorted(agent.glob("*")) if (trials := RunFolder(seed).trials())]
        if searches:
            lines.append(tuple(row(f"{agent.parent.name}, `{agent.name}`", searches)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command(help=__doc__)
@click.option("--results", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Folder of `bench run`.")
def main(results: Path) -> None:
    """The command; its help is that of the module."""
    click.echo(table(results))


if __name__ == "__main__":
    main()
