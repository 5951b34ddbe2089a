"""Where this machine keeps what it would otherwise compute again; losing it costs time only."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.files import atomic, read_json, write_json

T = TypeVar("T")
V = TypeVar("V")
WORTH = 0.1
"""Seconds below which what was computed is not kept."""
ROOM = 8 << 30
"""Bytes of one kind of thing at most; what was longest not used goes."""


def folder(kind: str) -> Path:
    """The folder of one kind of thing, in the user's cache folder or where `COMPRESS_ENV_CACHE` says; it may not exist yet."""
    own = os.environ.get("COMPRESS_ENV_CACHE")
    root = Path(own).expanduser() if own else platformdirs.user_cache_path("compress_env", appauthor=False)
    return root / kind


def tensors(kind: str, key: str, compute: Callable[[], dict[str, Tensor]], use: Callable[[dict[str, Tensor]], T]) -> T:
    """Something made of tensors by name that are computed once.

    Args:
        kind: The kind of thing.
        key: Names everything that they depend on, as by `content_key`.
        compute: Makes them; they are kept if that takes longer than WORTH.
        use: Makes the thing of them; if it fails on kept ones, they are damaged, and computed again.

    Returns:
        The thing, made of the tensors that were kept under this key, or else of the computed ones.
    """
    return _kept(folder(kind) / f"{key}.safetensors", load_file, _write_tensors, compute, use, WORTH)


def values(
    kind: str, key: str, compute: Callable[[], Any], use: Callable[[Any], T], keep: Callable[[Any], bool] = lambda _: True
) -> T:
    """Something made of plain values that are computed once.

    Args:
        kind: The kind of thing.
        key: Names everything that it depends on.
        compute: Makes values that JSON can hold.
        use: Makes the thing of them; if it fails on kept ones, they are damaged, and computed again.
        keep: Whether computed values are to be kept.

    Returns:
        The thing.
    """
    return _kept(folder(kind) / f"{key}.json", read_json, write_json, compute, use, 0.0, keep)


def content_key(*parts: object) -> str:
    """A name for the content of tensors, arrays, traced modules (what they compute, and their weights) and values with a repr."""
    digest = hashlib.sha256(torch.__version__.encode())
    for part in parts:
        if isinstance(part, fx.GraphModule):
            digest.update(f"{part.code}{part}{fingerprint(part)}".encode())
        elif isinstance(part, Tensor | np.ndarray):
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(_bytes(torch.as_tensor(part)))
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:32]


def fingerprint(module: nn.Module) -> str:
    """A name for the weights and buffers of a module, the same on every machine and in every version."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def make_room(where: Path, limit: int) -> None:
    """Delete what was longest not used, until the files in `where` take at most `limit` bytes."""
    files = sorted((f for f in where.iterdir() if f.is_file()), key=lambda f: f.stat().st_mtime)
    total = sum(f.stat().st_size for f in files)
    for file in files:
        if total <= limit:
            break
        total -= file.stat().st_size
        file.unlink()


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _write_tensors(file: Path, found: dict[str, Tensor]) -> None:
    with atomic(file) as part:
        save_file({name: value.contiguous() for name, value in found.items()}, part)


def _kept(
    file: Path, read: Callable[[Path], V], write: Callable[[Path, V], None], compute: Callable[[], V], use: Callable[[V], T],
    worth: float, keep: Callable[[V], bool] = lambda _: True,
) -> T:  # fmt: skip
    try:
        found = use(read(file))
        os.utime(file)  # used now, the last to go
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        if os.path.lexists(file):
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{file} in the cache is damaged ({reason}); it is computed again", stacklevel=4)
    began = time.perf_counter()
    computed = compute()
    if time.perf_counter() - began > worth and keep(computed):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, computed)
            make_room(file.parent, ROOM)
        except (OSError, UserError, SafetensorError):
            pass  # a disk that is full or read-only costs the next run the computing
    return use(computed)
