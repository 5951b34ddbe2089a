"""Students of ours and of torch-pruning within one limit, all of them fine-tuned alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from benchmarks.peers.limits import Bound
from benchmarks.peers.pruners import IMAGES, STEPS
from benchmarks.peers.students import Contestant, Makers, Numbers, Student, reason, students
from benchmarks.trained import metric, recipe_of, train
from compress_env.distill.finetune import loss_name
from compress_env.distill.train import Diverged
from compress_env.files import JsonLines, make_folder
from compress_env.problem import Problem
from compress_env.spec import FinetuneSpec

PLAIN = FinetuneSpec()


@dataclass(frozen=True)
class PeerResult(Numbers):
    """A student after a fine-tuning, or why there is none.

    Attributes:
        epochs: Of the fine-tuning, 0 for the student as it is right after the surgery.
        seed: Of the fine-tuning.
        lr: The peak rate.
        validation: As in `Trained`, and so are the others.
    """

    epochs: int = 0
    seed: int = 0
    lr: float = 0.0
    validation: float = 0.0
    test: float = 0.0
    best_epoch: int = 0
    history: tuple[float, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of(cls, student: Student, epochs: int, seed: int, **given: Any) -> PeerResult:
        """What became of a student."""
        own = {name: value for name, value in asdict(student).items() if name != "pruned"}
        return cls(**(own | {"epochs": epochs, "seed": seed} | given))


def settings_of(bound: Bound, how: FinetuneSpec) -> dict[str, Any]:
    """What all rows of a file have in common."""
    problem = bound.problem
    data = problem.data
    return {
        "teacher": problem.teacher.name, "data": data.name, "training_images": len(data.train), "resource": bound.resource,
        "share": round(bound.share, 6), "where": problem.runtime.label if bound.measured else "", "multiple": bound.multiple,
        "loss": loss_name(problem.task, how.loss), "steps": STEPS, "images": IMAGES, "lr": how.lr,
        "teacher_validation": metric(problem, problem.whole, data.validation),
        "teacher_test": metric(problem, problem.whole, data.test),
    } | ({"examples": how.examples} if how.examples else {})  # fmt: skip


def compare(
    makers: Makers, contestants: Sequence[Contestant], epochs: Sequence[int], seeds: int, out: Path, how: FinetuneSpec = PLAIN,
    progress: bool = True,
) -> tuple[dict[str, Any], list[PeerResult]]:  # fmt: skip
    """Fine-tune every contestant with every seed for every number of epochs.

    Rows are appended to `out/peers.jsonl`, the shortest trainings first; those that are there are not made again. Students are kept in
    `out/students.jsonl`.

    Args:
        makers: Makes students within the limit.
        contestants: Who takes part.
        epochs: Of the fine-tunings, each a training of its own; 0 for students as they are right after the surgery.
        seeds: How many fine-tunings of each.
        out: The folder.
        how: Of the fine-tunings, the rate, the loss and the number of images.
        progress: Whether to show how far it is.

    Returns:
        Settings and rows.

    Raises:
        UserError: If the file was made with other settings.
    """
    make_folder(out)
    settings = settings_of(makers.bound, how)
    results = JsonLines(out / "peers.jsonl", PeerResult, header=True)
    rows = results.begin(settings)
    done = {(r.student, r.epochs, r.seed) for r in rows}
    hopeless = {r.student for r in rows if r.failed}
    found = students(makers, contestants, out, progress)
    wanted = [(e, s, i) for s in range(seeds) for e in sorted(set(epochs)) for i in range(len(found)) if e or not s]
    with tqdm(total=len(wanted), desc="trainings", unit="student", disable=not progress) as bar:
        for length, seed, i in wanted:
            student, make = found[i]
            bar.set_postfix_str(student.student)
            if student.student not in hopeless and (student.student, length, seed) not in done:
                row = _result(makers.problem, student, make, length, seed, out, how, progress)
                if row.failed:
                    hopeless.add(student.student)
                results.append(row)
                rows.append(row)
            bar.update()
    return settings, rows


def _result(
    problem: Problem, student: Student, make: Callable[[], nn.Module], epochs: int, seed: int, out: Path, how: FinetuneSpec,
    progress: bool,
) -> PeerResult:  # fmt: skip
    if student.failed:
        return PeerResult.of(student, epochs, seed)
    if not epochs:
        start = {"validation": student.validation_start, "test": student.test_start, "history": (student.validation_start,)}
        return PeerResult.of(student, 0, seed, **start)
    checkpoint = out / f"{student.student.replace(' ', '-')}-{epochs}-{seed}.checkpoint"
    how = replace(how, epochs=epochs)
    try:
        result = train(problem, make(), how, seed, checkpoint, progress)
    except Diverged as error:
        checkpoint.unlink(missing_ok=True)
        return PeerResult.of(student, epochs, seed, failed=reason(error))
    return PeerResult.of(student, epochs, seed, lr=recipe_of(problem, how).lr, **asdict(result))

