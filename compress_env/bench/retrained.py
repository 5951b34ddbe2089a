"""Winners of `bench run` that were distilled fully, for a column of its report; `python -m benchmarks.retrain` makes the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress_env.bench.run import Run
from compress_env.files import JsonLines

FRESH = 1000
"""Added to the seed of a search for that of its winner's distillation, so that it is one that no search has used.

Each search's own winner is distilled once, rather than that of the median seed several times: searches differ more than trainings of
one student, and an interval over both is what somebody who searches once can expect.
"""


@dataclass(frozen=True)
class Retrained:
    """A plan of a scenario after full distillation. Agents that found the same plan with the same seed share it.

    Attributes:
        scenario: Its scenario.
        plan: The plan, as JSON.
        seed: Of the distillation.
        epochs: Passes over the training split.
        validation_start: Main metric on all validation images, right after the refit.
        test_start: On test images, likewise.
        validation: On validation images, of the best epoch.
        test: On test images, of the same epoch.
        best_epoch: Which one.
    """

    scenario: str
    plan: str
    seed: int
    epochs: int
    validation_start: float
    test_start: float
    validation: float
    test: float
    best_epoch: int


def path_of(results: Path) -> Path:
    """Where the distilled winners of a results file are: beside it."""
    return results.with_name(f"{results.stem}-retrained.jsonl")


def records(results: Path) -> JsonLines[Retrained]:
    """The distilled winners of a results file."""
    return JsonLines(path_of(results), Retrained)


def of_agent(runs: Sequence[Run], found: Mapping[tuple[str, str, int], Retrained]) -> list[Retrained]:
    """The distilled winners of these runs, as far as there are; `found` by scenario, plan and seed."""
    keys = ((r.scenario, r.plan, FRESH + r.seed) for r in runs)
    return [found[key] for key in keys if key in found]
