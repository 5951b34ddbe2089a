"""After the search: the final judging, fine-tuning, exports and report lose nothing, whatever goes wrong, and are not done twice."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import faults
import pytest
import torch
from safetensors.torch import load_file

from compress_env import files, finishing
from compress_env.api import finish, run_search
from compress_env.distill import train
from compress_env.distill.train import Diverged
from compress_env.errors import EveryStudentFailed, UserError
from compress_env.evaluator import Evaluator
from compress_env.files import read_json, write_json
from compress_env.objective import Objective
from compress_env.resources.cost_model import CostModel
from compress_env.search.choice import FINALISTS_FILE
from compress_env.search.store import RunFolder, alone_in
from compress_env.spec import EnvironmentSpec, SearchSpec

SPEC = EnvironmentSpec.of_keywords(teacher=faults.small(), data=faults.images(), budget={"macs": 0.6})
EPOCHS = 3


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run folder with a search of eight students, its objective, and what an undisturbed end of it gives."""
    folder, objective = run_search(SPEC, SearchSpec("random", {}, 8, 0), tmp_path_factory.mktemp("run"), progress=False)
    kept = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.MonkeyPatch.context() as patched:
        quick(patched)
        finish(folder, EPOCHS, objective=objective, progress=False)
    weights = load_file(folder.path / "student.safetensors")
    return kept, objective, read_json(folder.path / "result.json"), weights


def quick(monkeypatch) -> None:
    """No exports and no latency, which take seconds, and the latter is never the same."""
    monkeypatch.setattr(finishing, "export_all", lambda *_, **__: {})
    monkeypatch.setattr(CostModel, "compare", lambda self, student, plan: (dict(self.teacher), self.count(student, plan)))


@pytest.fixture
def run(searched, tmp_path, monkeypatch):
    """The run folder as the search left it, and a fresh objective."""
    quick(monkeypatch)
    kept, objective, _, _ = searched
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    return RunFolder(tmp_path), lambda: Objective(SPEC, problem=objective.problem, sensitivities=objective.sensitivities)


def complete(folder: RunFolder, searched) -> None:
    """The outcome is that of a run that nothing disturbed, bit for bit."""
    _, _, expected, weights = searched
    found = load_file(folder.path / "student.safetensors")
    assert read_json(folder.path / "result.json") == expected
    assert all(torch.equal(value, found[name]) for name, value in weights.items())
    assert (folder.path / "report.html").is_file() and not list(folder.path.glob("*.checkpoint"))
    assert not [p.name for p in folder.path.iterdir() if p.name.startswith(".")]


@contextmanager
def counted(monkeypatch, owner, name):
    """Calls of a function."""
    calls, function = [], getattr(owner, name)

    def call(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, call)
        yield calls


def test_a_run_that_is_finished_is_neither_judged_nor_distilled_again(run, searched, monkeypatch):
    folder, objective = run
    first = finish(folder, EPOCHS, objective=objective(), progress=False)
    complete(folder, searched)
    (folder.path / "report.html").unlink()
    with counted(monkeypatch, finishing, "finetune") as trainings, counted(monkeypatch, Evaluator, "outputs") as evaluations:
        again = finish(folder, EPOCHS, objective=objective(), progress=False)
        assert not trainings and not evaluations
        complete(folder, searched)
        assert again.finetuned == first.finetuned and again.evaluation == first.evaluation and again.result == first.result
        assert all(torch.equal(v, again.student.state_dict()[k]) for k, v in first.student.state_dict().items())
        assert not again.student.training
        (folder.path / "student.safetensors").write_bytes(b"damaged")
        with pytest.warns(UserWarning, match="student.safetensors.*; the student is made again"):
            finish(folder, EPOCHS, objective=objective(), progress=False)
        assert len(trainings) == 1 and not evaluations
        complete(folder, searched)
        assert finish(folder, 1, objective=objective(), progress=False).finetuned.epochs == 1 and len(trainings) == 2


STEPS = ("finalists", "fine-tuning", "exports", "report.html")


@pytest.mark.parametrize("step", STEPS)
def test_an_end_that_is_interrupted_anywhere_goes_on_to_the_same_outcome(step, run, searched, monkeypatch):
    folder, objective = run
    left = {"finalists": 3, "fine-tuning": 2}.get(step, 1)

    def dies(function, matches):
        def call(*arguments, **options):
            nonlocal left
            left -= matches(arguments)
            if not left:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        if step == "finalists":
            patched.setattr(Evaluator, "outputs", dies(Evaluator.outputs, lambda _: True))
        elif step == "fine-tuning":
            patched.setattr(train, "training_batches", dies(train.training_batches, lambda _: True))
        elif step == "exports":
            patched.setattr(finishing, "export_all", dies(finishing.export_all, lambda _: True))
        else:
            patched.setattr(Path, "replace", dies(Path.replace, lambda a: a[1].name == step))
        with pytest.raises(KeyboardInterrupt):
            finish(folder, EPOCHS, objective=objective(), progress=False)
    with counted(monkeypatch, Evaluator, "outputs") as evaluations, counted(monkeypatch, train, "training_batches") as passes:
        finish(folder, EPOCHS, objective=objective(), progress=False)
    complete(folder, searched)
    assert bool(evaluations) == (step == "finalists")
    assert len(passes) == {"finalists": EPOCHS, "fine-tuning": EPOCHS - 1}.get(step, 0)  # nothing is trained twice


def test_a_student_that_fails_after_the_search_makes_place_for_the_next_and_is_recorded(run, searched, monkeypatch):
    folder, objective = run
    best = searched[2]["best_trial"]
    for name, place in (("exception", Evaluator), ("nan", Evaluator)):
        own = objective()
        plan = next(t for t in folder.trials() if t.index == best).plan
        outputs = Evaluator.outputs

        def fails(self, student, p, name=name, plan=plan, outputs=outputs):
            if p == plan:
                faults.FAULTS["now"] = faults.fault(name)
            try:
                return outputs(self, student, p)
            finally:
                faults.FAULTS.clear()

        for file in (FINALISTS_FILE, "result.json"):
            (folder.path / file).unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            patched.setattr(place, "outputs", fails)
            found = finish(folder, 1, objective=own, progress=False)
        assert found.result.best_trial != best
        rows = [t for t in files.JsonLines(folder.path / FINALISTS_FILE, type(folder.trials()[0])).read() if t.index == best]
        assert [row.evaluation.failed for row in rows] == [
            "OwnError: no such layer" if name == "exception" else "the student's outputs are not finite"
        ]


def failing(monkeypatch, which, error):
    """The first fine-tunings raise an error."""
    function, calls = finishing.finetune, []

    def call(*arguments, **options):
        calls.append(options["checkpoint"])
        if len(calls) <= which:
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(finishing, "finetune", call)
    return calls


def test_a_student_that_cannot_be_fine_tuned_makes_place_for_the_next(run, searched, monkeypatch):
    folder, objective = run
    calls = failing(monkeypatch, 1, RuntimeError("one of the variables needed for gradient computation has been modified"))
    with pytest.warns(UserWarning, match=r"trial \d cannot be fine-tuned \(RuntimeError: one of .*; the next best takes its place"):
        found = finish(folder, 1, objective=objective(), progress=False)
    assert found.result.best_trial != searched[2]["best_trial"] and len(calls) == 2
    again = finish(folder, 2, objective=objective(), progress=False)  # the one that fails is not tried again
    assert again.result.best_trial == found.result.best_trial and len(calls) == 3


def test_fine_tuning_that_fails_for_all_or_because_of_the_machine_is_a_sentence(run, monkeypatch):
    folder, objective = run
    with monkeypatch.context() as patched:
        failing(patched, 1, MemoryError())
        with pytest.raises(UserError, match=r"the fine-tuning of trial \d ended \(MemoryError\); finetune-.*checkpoint has what"):
            finish(folder, 1, objective=objective(), progress=False)
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failing(patched, 100, Diverged("the loss is nan at step 1 of 3"))
        with pytest.raises(EveryStudentFailed, match="none of the best students can be fine-tuned .Diverged: the loss is nan"):
            finish(folder, 1, objective=objective(), progress=False)


def test_a_fine_tuning_that_diverges_keeps_its_best_epoch(run, monkeypatch):
    folder, objective = run
    distil, calls = train.torch.isfinite, iter(range(1000))
    monkeypatch.setattr(train.torch, "isfinite", lambda loss: distil(loss) & (loss.dim() > 0 or next(calls) < 1))
    with pytest.warns(UserWarning, match="the fine-tuning ends after epoch 1: the loss is .* at step 2 of 3; its best epoch is kept"):
        found = finish(folder, EPOCHS, objective=objective(), progress=False)
    assert found.finetuned.epochs == 1 and found.finetuned.diverged.startswith("the loss is")
    monkeypatch.undo()
    quick(monkeypatch)
    assert finish(folder, EPOCHS, objective=objective(), progress=False).finetuned == found.finetuned


def test_two_ends_of_one_run_exclude_each_other(run):
    folder, objective = run
    with alone_in(folder.path), pytest.raises(UserError, match="another process is working in"):
        finish(folder, EPOCHS, objective=objective(), progress=False)


def test_a_run_without_a_student_says_why(run, tmp_path):
    folder, objective = run
    trials = folder.trials()
    for changed, told in (
        ({"failed": "MemoryError"}, r"none of the 8 students could be evaluated \(MemoryError\)$"),
        ({"usage": {"macs": 1e9, "params": 1, "memory": 1}}, "none of the 8 students meets the budget; search further with --resume"),
    ):
        folder._trials.write([replace(t, evaluation=replace(t.evaluation, **changed)) for t in trials])
        with pytest.raises(UserError, match=told):
            finish(folder, 1, objective=objective(), progress=False)


def test_seconds_add_up_over_resumes(run, monkeypatch):
    folder, _ = run
    trials = folder.trials()
    folder._trials.write([replace(t, seconds=100.0) for t in trials[:5]])
    _, objective = run_search(SPEC, SearchSpec("random", {}, 8, 0), folder.path, resume=True, progress=False)
    assert 500 <= finish(folder, 1, objective=objective, progress=False).result.seconds < 600


def whole(folder: Path, objective) -> None:
    """The run from the beginning, or from where it is."""
    made, _ = run_search(SPEC, SearchSpec("random", {}, 8, 0), folder, resume=True, progress=False)
    finish(made, EPOCHS, objective=objective(), progress=False)


WRITES = (2, 4, 6, 3, 4, 2, 2, 2, 2)
"""At which of its writes each attempt ends: settings, trials, finalists, epochs, weights, outcome and report are written in turn."""


def test_a_disk_that_is_full_again_and_again_loses_nothing(run, searched, tmp_path, monkeypatch):
    _, objective = run
    synchronise, folder = os.fsync, tmp_path / "whole"

    for number, last in enumerate(WRITES):
        left = last

        def full(file):
            nonlocal left
            left -= 1
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            synchronise(file)

        with monkeypatch.context() as patched:
            patched.setattr(files.os, "fsync", full)
            with pytest.raises(UserError, match=r"cannot write .*: No space left on device; make room"):
                whole(folder, objective)
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], number
    whole(folder, objective)
    same(folder, searched)


def same(folder: Path, searched) -> None:
    """The outcome is that of a run that nothing disturbed, but for the seconds that the search took."""
    result = read_json(folder / "result.json")
    write_json(folder / "result.json", result | {"seconds": searched[2]["seconds"]})
    complete(RunFolder(folder), searched)
    assert len(RunFolder(folder).trials()) == 8


def test_a_process_that_is_killed_in_each_phase_loses_nothing(run, searched, tmp_path, monkeypatch):
    _, objective = run
    folder = tmp_path / "whole"
    for last in (0, *WRITES):  # first amid the measurement of sensitivities
        child = os.fork()
        if not child:
            left = [last]

            def killed(_file, left=left):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

            files.os.fsync = killed
            if not last:
                faults.FAULTS["now"] = faults.fault("kill")
            try:
                whole(folder, objective)
            finally:
                os._exit(7)  # it was to be killed before
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, last
    whole(folder, objective)
    same(folder, searched)


ENDS = """
import sys
sys.path.insert(0, {tests!r})
import click
import faults
from compress_env.cli.commands import Command
from compress_env.distill import train
from compress_env import finishing
from compress_env.search.store import RunFolder
from compress_env.objective import Objective
from test_finish import SPEC
@click.command(cls=Command)
def main():
    print("begun", flush=True)
    epoch = train.Checkpoint.save
    def save(*a):
        epoch(*a)
        print("saved", flush=True)
    train.Checkpoint.save = save
    folder = RunFolder({folder!r})
    finishing.finish(folder, 100000, objective=Objective(SPEC), progress=False)
main()
"""


def test_sigterm_ends_like_ctrl_c(run):
    folder, _ = run
    command = [sys.executable, "-c", ENDS.format(tests=str(Path(__file__).parent), folder=str(folder.path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stdout.readline() == "begun\n" and running.stdout.readline() == "saved\n"
    running.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, told = running.communicate(timeout=60)
    assert running.returncode == 143 and time.monotonic() - began < 30
    assert told.splitlines()[-1].startswith("Interrupted. What was done so far is kept; the same command goes on")
    assert len(list(folder.path.glob("finetune-*.checkpoint"))) == 1
    with alone_in(folder.path):
        pass
