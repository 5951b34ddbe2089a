"""`load_student`: the student of a folder in one call, made again from the teacher's code and its own weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compress_env.errors import UserError
from compress_env.export import rebuild_student
from compress_env.files import read_json
from compress_env.own_code import Trust, check_trust
from compress_env.problem import Measured, Problem
from compress_env.records import Damaged, value_of
from compress_env.search.reopened import kept
from compress_env.search.store import RunFolder
from compress_env.settings import OBJECT
from compress_env.spec import ProblemSpec
from compress_env.teachers import TEACHERS, load_teacher, load_weights

WEIGHTS = "student.safetensors"
SETTINGS = "distillation.json"
"""What a distillation without a search was begun with."""


def load_student(run: str | Path, *, network: Any = None, trust: Trust = False, progress: bool = False) -> nn.Module:
    """The student of a run folder, or of a folder of `distil`, as it was distilled; on the CPU, in evaluation mode.

    The teacher that the folder names is loaded, and the student is built from it by `plan.json` and gets the weights of
    `student.safetensors`. No pickled code is run.

    Args:
        run: The folder.
        network: What the student is built of, where the folder names code or an object that is not here, as that of somebody else
            may: the teacher of a run, or the student of a distillation without a search, as a module or as its place
            (`"net.py:make"`). Its weights do not matter, and it stays as it is.
        trust: Whether to run code that the folder names, such as a teacher in a file: True, or the places of what may be run
            (`["net.py:make"]`).
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: If there is no distilled student, its teacher was a Python object, or code is named that is not trusted.
    """
    folder = RunFolder(run)
    if (folder.path / SETTINGS).is_file():
        return _distilled(folder, network, trust, progress)
    environment = folder.recorded()["environment"]
    if not (folder.path / WEIGHTS).is_file():
        raise UserError(f"{folder.path} has no distilled student yet; compress-env finetune --out {folder.path} makes it")
    problem = _problem(folder, environment["problem"], network, trust, progress)
    return rebuild_student(problem.module, problem.graph, folder.path).eval()


def _problem(folder: RunFolder, settings: Mapping[str, Any], network: Any, trust: Trust, progress: bool) -> Problem:
    """The problem of a run, for a student to be built of it: where a run has measured it, without weights and data."""
    path, measured = folder.path / "run.json", kept(folder, "problem.json", Measured.from_json)
    needless = ("weights", "data", "validation", "augmentation") if measured else ()
    if network is None and isinstance(settings.get("teacher"), Mapping):
        raise UserError(f"the teacher of {path} was a Python object ({settings['teacher'].get(OBJECT)}); give it as network=")
    given = {n: v for n, v in settings.items() if n not in needless and (n != "teacher" or network is None)}
    try:
        check_trust(given, trust, path)
    except UserError as error:
        raise UserError(f"{error}; a teacher can be given itself, too, as network=") from None
    try:
        spec = ProblemSpec.from_json(given)
    except Damaged as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or search again in another folder") from None
    return Problem.build(spec if network is None else replace(spec, teacher=network), measured=measured, progress=progress)


def _distilled(folder: RunFolder, network: Any, trust: Trust, progress: bool) -> nn.Module:
    path = folder.path / SETTINGS
    try:
        settings = value_of(Mapping[str, Any], read_json(path), SETTINGS)
    except Damaged as error:
        raise UserError(f"{path} is damaged ({error}); distil again in another folder") from None
    student = settings.get("student") if network is None else network
    if isinstance(student, str) and (":" in student or student in TEACHERS.names()):
        if network is None:
            check_trust({"student": student}, trust, path)
        module = load_teacher(student, progress=progress, role="student").module
    elif isinstance(student, nn.Module):
        module = copy.deepcopy(student)
    elif isinstance(student, (str, Path)) and Path(student).is_dir():
        module = load_student(student, trust=trust, progress=progress)
    else:
        raise UserError(f"{path} names no student that is here; give it as network=, a module or its place")
    load_weights(module, folder.path / WEIGHTS)
    return module.eval()


__all__ = ["load_student"]
