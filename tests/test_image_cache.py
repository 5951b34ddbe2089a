"""Images decoded once: what is kept is what was read, and a file that changes is read again."""

from __future__ import annotations

import os

import pytest
import torch

from compress_env import cache
from compress_env.datasets import image_cache
from compress_env.datasets.image_cache import decoded


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Three files, and where images are kept, however quickly they were read."""
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "WORTH", 0.0)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(path.encode())
    return paths, tmp_path / "cache" / "images"


class Reader:
    """Other images each time, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return torch.full((3, 3, 2, 2), self.calls, dtype=torch.uint8)


def test_images_are_read_once_until_a_file_changes(kept):
    paths, _ = kept
    read = Reader()
    for _ in range(2):
        assert torch.equal(decoded(paths, None, read), torch.full((3, 3, 2, 2), 1, dtype=torch.uint8))
    assert read.calls == 1
    decoded(paths, 2, read)  # of another size
    os.utime(paths[1], ns=(1, 1))
    decoded(paths, None, read)
    assert read.calls == 3


def test_what_is_damaged_is_read_again_and_what_is_quick_is_not_kept(kept, monkeypatch):
    paths, where = kept
    read = Reader()
    decoded(paths, None, read)
    (file,) = where.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    decoded(paths, None, read)
    decoded(paths, None, read)
    assert read.calls == 2
    file.unlink()
    monkeypatch.setattr(image_cache, "WORTH", 60.0)
    decoded(paths, None, read)
    assert read.calls == 3 and not any(where.iterdir())


def test_what_was_longest_not_used_goes_first(tmp_path):
    for i in range(4):
        (tmp_path / str(i)).write_bytes(bytes(100))
        os.utime(tmp_path / str(i), (i, i))
    os.utime(tmp_path / "0", (9, 9))
    cache.make_room(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "3"]


def test_a_folder_that_cannot_be_written_costs_only_time(kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "file"))
    read = Reader()
    decoded(kept[0], None, read)
    decoded(kept[0], None, read)
    assert read.calls == 2
