"""Where this machine keeps what it would otherwise compute again; losing it costs time only."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def folder(kind: str) -> Path:
    """The folder of one kind of thing, in the user's cache folder or where `COMPRESS_ENV_CACHE` says; it may not exist yet."""
    own = os.environ.get("COMPRESS_ENV_CACHE")
    root = Path(own).expanduser() if own else platformdirs.user_cache_path("compress_env", appauthor=False)
    return root / kind


def make_room(where: Path, limit: int) -> None:
    """Delete what was longest not used, until the files in `where` take at most `limit` bytes."""
    files = sorted((f for f in where.iterdir() if f.is_file()), key=lambda f: f.stat().st_mtime)
    total = sum(f.stat().st_size for f in files)
    for file in files:
        if total <= limit:
            break
        total -= file.stat().st_size
        file.unlink()
