"""Where this machine keeps what it would otherwise compute again; losing it costs time only."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

WORTH = 1.0
"""Seconds below which what was computed is not kept."""
ROOM = 8 << 30
"""Bytes of one kind of thing at most; what was longest not used goes."""


def folder(kind: str) -> Path:
    """The folder of one kind of thing, in the user's cache folder or where `COMPRESS_ENV_CACHE` says; it may not exist yet."""
    own = os.environ.get("COMPRESS_ENV_CACHE")
    root = Path(own).expanduser() if own else platformdirs.user_cache_path("compress_env", appauthor=False)
    return root / kind


def tensors(kind: str, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `compute()` gives, or gave at an earlier time for the same `key`, which names everything that it depends on."""
    file = folder(kind) / f"{key}.safetensors"
    try:
        found = load_file(file)
        os.utime(file)  # used now, the last to go
        return found
    except (OSError, SafetensorError):
        pass  # not kept, or damaged
    began = time.perf_counter()
    found = compute()
    if time.perf_counter() - began > WORTH:
        _keep(found, file)
    return found


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
    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _keep(found: dict[str, Tensor], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.contiguous() for name, value in found.items()}, part)
        part.replace(file)
        make_room(file.parent, ROOM)
    except OSError:
        pass  # a disk that is full or read-only costs the next run the computing
