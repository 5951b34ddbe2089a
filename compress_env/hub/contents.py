"""What travels to a hub and back: files of a few names and formats, none of which runs code when it is loaded, and the model card."""

from __future__ import annotations

import re
import shlex
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress_env.errors import UserError
from compress_env.extras import ONNX, installed, need
from compress_env.files import read_json, write_json
from compress_env.search.run import POLICY
from compress_env.search.store import RunFolder
from compress_env.students import SETTINGS, WEIGHTS

CARD, RESULT, GRAPH = "README.md", "result.json", "student.onnx"
DATA = ("run.json", SETTINGS, "problem.json", "plan.json", RESULT, "search.json")
MIB = 1 << 20
LARGEST: Mapping[str, int] = {
    CARD: MIB, **dict.fromkeys(DATA, 64 * MIB), WEIGHTS: 16 << 30, GRAPH: 2 << 30, POLICY: 64 * MIB,
}  # fmt: skip
"""The files that travel, and how many bytes each may have. The limit of ONNX is that of its format."""
PLACE = re.compile(r"(?:(?<=^)|(?<=[:=,]))~?/(?!/)(?:[^:=,]*/)?")
"""The folders of a path that is not relative, in a setting or a word of a command."""
NAMES = ("class_names", "class")
"""Where texts are names of classes, whatever they look like."""


def stage(source: Path, folder: Path) -> None:
    """Copy what travels of a run folder, of a folder of `distil`, or of a policy's file, into an empty folder.

    Of paths on this machine the last part stays, in settings and in the command alike.

    Args:
        source: The folder or file.
        folder: Where the copies go; it exists.

    Raises:
        UserError: If there is neither a distilled student nor a policy, or a file is no regular one, too large or damaged.
    """
    if not source.exists():
        raise UserError(f"there is no {source}; give a run folder, a folder of compress-env distill, or a policy's file")
    found = _of_folder(source) if source.is_dir() else {POLICY: source}
    if found.keys() <= {POLICY, "run.json", "search.json"}:
        need("a policy's file", *ONNX)
    found = {name: found[name] for name in checkable(list(found), str(source))}
    for name, path in found.items():
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is a link or no file, which is not pushed; put the file itself there")
        if name.endswith(".json"):
            write_json(folder / name, without_folders(read_json(path)))
        else:
            shutil.copyfile(path, folder / name)
    for name in found:
        check(folder / name, found[name])


def _of_folder(source: Path) -> dict[str, Path]:
    """The files of a folder that travel, by name."""
    own = [name for name in LARGEST if name != CARD and (source / name).exists()]
    if not (source / SETTINGS).is_file():
        RunFolder(source).recorded()  # which is no run's without
    if (source / WEIGHTS).is_file() and (source / RESULT).is_file():
        return {name: source / name for name in own}
    if POLICY in own:  # a search whose best student is not distilled
        return {name: source / name for name in own if name in ("run.json", "search.json", POLICY)}
    raise UserError(f"{source} has neither a distilled student nor a policy; compress-env finetune --out {source} distils the best")


def without_folders(value: Any, name: str = "") -> Any:
    """JSON in which paths that begin at the root or at home are only the last part of them.

    Args:
        value: Any JSON value.
        name: Its key; `command` is a line for a shell.
    """
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part, name) for part in value]
    if not isinstance(value, str) or name in NAMES:
        return value
    if name == "command":
        return shlex.join(PLACE.sub("", word) or word for word in _words(value))
    return PLACE.sub("", value) or value


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation that does not end
        return command.split()


def check(path: Path, shown: str | Path) -> None:
    """Look whether a file is what its name says, without running or using anything of it.

    JSON has to be an object, safetensors a whole file with a header that fits; an ONNX graph has to bring all of its weights and to
    consist of ONNX's own operators, and a policy's of a few of them (`policy_graph`).

    Args:
        path: The file; its name is in `LARGEST`.
        shown: What messages call it.

    Raises:
        UserError: If it is not.
    """
    if (size := path.stat().st_size) > LARGEST[path.name]:
        raise UserError(f"{shown} has {size:,} bytes, and a file of this name {LARGEST[path.name]:,} at most; it is not taken")
    try:
        if path.suffix == ".json" and not isinstance(read_json(path), Mapping):
            raise UserError(f"{shown} holds no JSON object; it is not taken")
        if path.name == POLICY:
            from compress_env.agents.saved import load_policy

            load_policy(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), str(shown))) from None
    if path.suffix == ".safetensors":
        _check_weights(path, shown)
    elif path.name == GRAPH:
        _check_graph(path, shown)


class LeftOut(UserWarning):
    """Files that do not travel; the message says which, and why."""


def checkable(names: list[str], where: str) -> list[str]:
    """Names without those of files that cannot be checked here, because ONNX is not installed; a warning says so."""
    graphs = [name for name in names if name.endswith(".onnx")]
    if not graphs or installed(*ONNX):
        return names
    warnings.warn(
        LeftOut(
            f"{' and '.join(graphs)} of {where} cannot be checked without the package onnx, and is left out; have it with: "
            'pip install "compress-env[export]"'
        ),
        stacklevel=3,
    )
    return [name for name in names if name not in graphs]


def _check_weights(path: Path, shown: str | Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # reads the header, and compares it with the size
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shown} is no whole safetensors file ({error}); it is not taken") from None


def _check_graph(path: Path, shown: str | Path) -> None:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - the parser has errors of its own in C++
        raise UserError(f"{shown} is no ONNX file ({_first_line(error)}); it is not taken") from None
    if other := {i.domain for i in model.opset_import} - {"", "ai.onnx"}:
        raise UserError(f"{shown} needs the operators {sorted(other)[0]!r}, which are not ONNX's own; it is not taken")
    for part in _parts(model):
        if isinstance(part, onnx.TensorProto) and (part.external_data or part.data_location == onnx.TensorProto.EXTERNAL):
            raise UserError(f"{shown} has weights in another file; it is not taken")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 - likewise
        raise UserError(f"{shown} is no valid ONNX file ({_first_line(error)}); it is not taken") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _parts(message: Any) -> Iterator[Any]:
    """A protobuf message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _parts(part)
