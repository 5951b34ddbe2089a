"""`load_student`: the student of a folder in one call, made again from the teacher's code and its own weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compress_env.errors import UserError
from compress_env.export import rebuild_student
from compress_env.files import read_json
from compress_env.own_code import Trust, check_trust
from compress_env.records import Damaged, value_of
from compress_env.search.reopened import objective_of
from compress_env.search.store import RunFolder
from compress_env.spec import OBJECT
from compress_env.teachers import load_teacher, load_weights

SETTINGS = "distillation.json"
"""What a distillation without a search was begun with."""


def load_student(run: str | Path, *, trust: Trust = False, progress: bool = False) -> nn.Module:
    """The student of a run folder, or of a folder of `distil`, as it was distilled; on the CPU, in evaluation mode.

    The teacher that the folder names is loaded, and the student is built from it by `plan.json` and gets the weights of
    `student.safetensors`. No pickled code is run.

    Args:
        run: The folder.
        trust: Whether to run code that the folder names, such as a teacher in a file: True, or the places of what may be run
            (`["net.py:make"]`).
        progress: Whether to show on standard error how far it is.

    Raises:
        UserError: If there is no distilled student, its teacher was a Python object, or code is named that is not trusted.
    """
    folder = RunFolder(run)
    if (folder.path / SETTINGS).is_file():
        return _distilled(folder, trust, progress)
    folder.recorded()
    if not (folder.path / "student.safetensors").is_file():
        raise UserError(f"{folder.path} has no distilled student yet; compress-env finetune --out {folder.path} makes it")
    problem = objective_of(folder, progress, trust=trust).problem
    return rebuild_student(problem.module, problem.graph, folder.path).eval()


def _distilled(folder: RunFolder, trust: Trust, progress: bool) -> nn.Module:
    path = folder.path / SETTINGS
    try:
        settings = value_of(Mapping[str, Any], read_json(path), SETTINGS)
    except Damaged as error:
        raise UserError(f"{path} is damaged ({error}); distil again in another folder") from None
    student = settings.get("student")
    if not isinstance(student, str) or OBJECT in settings:
        raise UserError(f"{path} names no student; load the weights in {folder.path / 'student.safetensors'} into yours")
    if Path(student).is_dir():
        module = load_student(student, trust=trust, progress=progress)
    else:
        check_trust({"student": student}, trust, path)
        module = load_teacher(student, progress=progress, role="student").module
    load_weights(module, folder.path / "student.safetensors")
    return module.eval()


__all__ = ["load_student"]
