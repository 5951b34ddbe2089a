"""Decoded images on disk: reading 60,000 small JPEG files takes longer than everything else before a search begins."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress_env import cache

FORMAT = 1
WORTH = 1.0  # seconds of reading below which nothing is kept
ROOM = 8 << 30  # bytes of all kept images


def decoded(paths: Iterable[str], image_size: int | None, read: Callable[[], Tensor]) -> Tensor:
    """Images `(n, 3, height, width)` uint8 of these files: kept from an earlier time, or what `read()` gives, which is kept.

    Files are known by name, size and time of change, in their order.
    """
    listing = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([FORMAT, image_size, listing]).encode()).hexdigest()[:32]
    file = cache.folder("images") / f"{key}.safetensors"
    try:
        images = load_file(file)["images"]
        if images.dtype == torch.uint8 and len(images) == len(listing):
            os.utime(file)  # used now, the last to go
            return images
    except (OSError, SafetensorError, LookupError):
        pass  # not kept, or damaged
    began = time.perf_counter()
    images = read()
    if time.perf_counter() - began > WORTH:
        _keep(images, file)
    return images


def _keep(images: Tensor, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        save_file({"images": images}, part)
        part.replace(file)
        cache.make_room(file.parent, ROOM)
    except OSError:
        pass  # a disk that is full or read-only costs the next run the reading
