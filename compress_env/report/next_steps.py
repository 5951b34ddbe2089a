"""What to do next with a run, by its state: a heading, the reason in this run's numbers, and a command each."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_env.errors import UserError
from compress_env.own_code import check_trust
from compress_env.report.formats import SPACE, in_sentence
from compress_env.report.plots import pareto
from compress_env.search.result import ResourceName, Result
from compress_env.search.store import flat
from compress_env.search.trial import Trial, best_trial
from compress_env.settings import OBJECT

LATE = 0.8
"""The share of a search or of a training after which what was found is late, so that more of it may find more."""
NEAR = 0.01
"""The loss of a metric that counts as small: a point of an accuracy, a hundredth of another metric."""
ONNX = "student.onnx"
CHEAPER = 0.9
"""The largest share of the student's usage that is worth a search of its own."""
SMALLER, LARGER, TIGHTER = 0.8, 1.25, 0.95
"""Factors of the next budget."""


@dataclass(frozen=True)
class Step:
    """Something to do next.

    Attributes:
        title: It, in a few words.
        why: A sentence or two.
        command: To be copied: of a shell, or Python.
        files: Names of files in the run folder that it is about.
    """

    title: str
    why: str
    command: str
    files: tuple[str, ...] = ()


class Next:
    """The next steps of a run.

    Args:
        folder: The run folder.
        run: The content of `run.json`, with the number of evaluations that the search is to have now.
        trials: All trials, at least one.
        best: The trial of the student; the best one where there is no result.
        result: The outcome, if there is one.
        guaranteed: Whether the run is one with `--max-accuracy-drop`.
    """

    def __init__(
        self, folder: Path, run: Mapping[str, Any], trials: Sequence[Trial], best: Trial, result: Result | None, guaranteed: bool
    ):
        self._folder, self._run, self._trials, self._best = folder, run, trials, best
        self._result, self._guaranteed = result, guaranteed
        self._out, self._objects = shlex.quote(str(folder)), _has_object(flat(run))
        self._trust = ""
        try:
            check_trust(run["environment"], False, "")
        except UserError:
            self._trust = " --trust"

    def steps(self) -> list[Step]:
        """The steps, the first one first."""
        if self._result:
            return [*self._since(self._result), *self._after(self._result)]
        return list(self._before())

    def _before(self) -> Iterator[Step]:
        """Those of a search without a result."""
        done, asked = len(self._trials), self._run["search"]["evaluations"]
        if done < asked or self._guaranteed:
            without = ", before a student held" if self._guaranteed else ""
            yield Step("Go on with the search", f"It ended after {done} of {asked} evaluations{without}.", self._search(asked))
        if self._guaranteed:
            return
        if best_trial(self._trials) is None:
            yield Step("Search further", f"None of the {done} students meets the budget.", self._search(2 * max(done, asked)))
            yield self._budget("Or allow a larger budget", "A larger budget is easier to meet.", LARGER)
            return
        yield Step(
            "Fine-tune and test the best student found",
            f"Trial {self._best.index} was judged without training. This distils it, measures it on test data and exports it.",
            self._finetune(30),
        )  # fmt: skip
        if done >= asked and self._late():
            yield Step("Or search further first", f"{self._when()}, so more may find a better one.", self._search(2 * asked))

    def _since(self, result: Result) -> Iterator[Step]:
        """Those of a search that was gone on with after its result was written."""
        done, asked = len(self._trials), self._run["search"]["evaluations"]
        if result.evaluations >= done:
            return
        if done < asked:
            yield Step("Go on with the search", f"It ended after {done} of {asked} evaluations.", self._search(asked))
        if not self._guaranteed:
            why = f"The student below is the best of the first {result.evaluations}; this looks at all {done}."
            yield Step("Fine-tune and test the best of all trials", why, self._finetune(max(1, result.finetune["epochs"])))

    def _after(self, result: Result) -> Iterator[Step]:
        """Those of a student that was distilled."""
        lost, words = self._lost(result)
        near = lost <= NEAR
        epochs, top = result.finetune["epochs"], result.finetune["best_epoch"]
        if not result.feasible:
            yield self._budget("Search within a smaller limit", "The student, measured in the end, is over the budget.", TIGHTER)
        elif near:
            yield self._deploy(result)
        if epochs and top >= LATE * epochs and not self._guaranteed:
            why = f"The best epoch was {top} of {epochs}: {result.metric} may still rise."
            yield Step("Fine-tune longer", why, self._finetune(2 * epochs))
        if not near and self._late() and not self._guaranteed:
            yield Step("Search further", f"{self._when()}, so more may find a better one.", self._search(2 * len(self._trials)))
        if result.feasible and not self._guaranteed:
            why = f"The student loses {words if lost > 0 else 'nothing'} of test {result.metric} at this budget."
            yield self._smaller(why) if near else self._budget("Allow a larger budget", why, LARGER)
        if result.feasible and not near:
            yield self._deploy(result)

    def _deploy(self, result: Result) -> Step:
        """How to use the student, or how to write the files for that."""
        found = [name for name, difference in result.exports.items() if difference is not None]
        files = tuple(name for name in found if (self._folder / name).is_file())
        if ONNX not in files:
            why = "It has not been exported to ONNX."
            return Step("Deploy it", why, f"compress-env export --out {self._out}{self._trust}", files)
        python = f"import onnxruntime; session = onnxruntime.InferenceSession({str(self._folder / ONNX)!r})"
        return Step("Deploy it", "These files run without this package and say what inputs and outputs mean:", python, files)

    def _smaller(self, why: str) -> Step:
        """A smaller budget, that of the cheapest trial on the front that is nearly as good, if there is one."""
        best = self._best
        if len(best.limits) == 1:
            (resource,) = best.limits
            fine = [t for t in self._trials if not t.evaluation.failed and t.evaluation.teacher_usage.get(resource)]
            points = [(t.evaluation.usage[resource] / t.evaluation.teacher_usage[resource], t.evaluation.metric) for t in fine]
            mine = best.evaluation.usage[resource] / best.evaluation.teacher_usage[resource], best.evaluation.metric
            good = [i for i in pareto(points) if points[i][1] >= mine[1] - NEAR * abs(mine[1]) and points[i][0] <= CHEAPER * mine[0]]
            if good:
                share, trial = points[good[0]][0], fine[good[0]].index
                label = in_sentence(ResourceName.of(resource).label)
                why += f" Trial {trial} does as well in the search at {100 * share:.3g}{SPACE}% of the {label}."
                return self._budget("Try a smaller budget", why, share / self._limit(resource))
        return self._budget("Try a smaller budget", why, SMALLER)

    def _budget(self, title: str, why: str, factor: float) -> Step:
        """A search with all limits times a factor."""
        now = {name: self._limit(name) for name in self._best.limits}
        limits = {name: f"{100 * min(max(1.0, limit), factor * limit):.3g}%" for name, limit in now.items()}
        place = f"{self._folder}-" + "-".join(limit.rstrip("%") for limit in limits.values())
        typed = " ".join(f"--budget {shlex.quote(f'{name}={limit}')}" for name, limit in limits.items())
        if self._objects:
            return Step(title, why, self._python(f"budget={limits!r}, out={place!r}"))
        config = shlex.quote(str(self._folder / "run.json"))
        return Step(title, why, f"compress-env search --config {config}{self._trust} {typed} --out {shlex.quote(place)}")

    def _limit(self, name: str) -> float:
        """The limit on a resource as a share of the teacher's usage; of a range, the one that the student was for."""
        whole = self._best.evaluation.teacher_usage[name]
        return self._best.limits[name] / whole if whole else 1.0

    def _finetune(self, epochs: int) -> str:
        if self._objects:
            return self._python(f"finetune_epochs={epochs}, out={str(self._folder)!r}, resume=True")
        return f"compress-env finetune --out {self._out} --epochs {epochs}{self._trust}"

    def _search(self, evaluations: int) -> str:
        """The command that goes on with the search, to so many evaluations."""
        if self._objects:
            return self._python(f"evaluations={evaluations}, out={str(self._folder)!r}, resume=True")
        if self._guaranteed and self._run["command"]:
            return f"{self._run['command']} --resume"
        config = shlex.quote(str(self._folder / "run.json"))
        return f"compress-env search --config {config}{self._trust} --evaluations {evaluations} --out {self._out} --resume"

    def _python(self, changed: str) -> str:
        """A call from Python, of a run of which a part was an object, which no file holds."""
        return f"compress_env.compress(..., {changed})  # the rest as it was"

    def _late(self) -> bool:
        return self._best.index + 1 >= LATE * len(self._trials)

    def _when(self) -> str:
        return f"The best student was found late, in evaluation {self._best.index + 1} of {len(self._trials)}"

    @staticmethod
    def _lost(result: Result) -> tuple[float, str]:
        """How much of the test metric is lost, as a share of 1 or of the teacher's, and in words."""
        before, after = result.teacher.metric_test, result.student.metric_test
        if 0 <= before <= 1 and 0 <= after <= 1:
            return before - after, f"{100 * (before - after):.2f} points"
        share = (before - after) / abs(before) if before else 0.0
        return share, f"{100 * share:.1f}{SPACE}%"


def _has_object(value: Any) -> bool:
    """Whether a setting, or one within it, was a Python object."""
    return isinstance(value, Mapping) and (OBJECT in value or any(map(_has_object, value.values())))
