"""Files are written with the user's own mode, and never through a link."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from compress_env import cache
from compress_env.errors import UserError
from compress_env.files import JsonLines, atomic, write_json
from compress_env.search.store import alone_in


@pytest.fixture(params=[0o022, 0o027, 0o002])
def mode(request):
    """The mode of new files under a umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_every_way_to_write_leaves_the_users_mode(tmp_path, mode):
    with atomic(tmp_path / "a.safetensors") as part:
        save_file({"x": torch.zeros(2)}, part)  # which makes a file for its owner alone
    write_json(tmp_path / "a.json", {})
    JsonLines(tmp_path / "a.jsonl", dict).append({"x": 1})
    cache._write_tensors(tmp_path / "b.safetensors", {"x": torch.zeros(2)})
    assert {path.name: of(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.safetensors", "a.json", "a.jsonl", "b.safetensors"), mode
    )


@pytest.fixture
def precious(tmp_path):
    """A file of the user's that a link in somebody else's folder points at."""
    file = tmp_path / "precious"
    file.write_text('{"x": 1}\n{"torn')
    (tmp_path / "run").mkdir()
    return file


def test_a_link_is_replaced_and_what_it_points_at_is_kept(tmp_path, precious):
    (tmp_path / "run" / "a.json").symlink_to(precious)
    write_json(tmp_path / "run" / "a.json", {"new": 1})
    assert precious.read_text() == '{"x": 1}\n{"torn' and not (tmp_path / "run" / "a.json").is_symlink()


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(tmp_path, precious):
    (tmp_path / "run" / f".a.{os.getpid()}.part.json").symlink_to(precious)
    write_json(tmp_path / "run" / "a.json", {"new": 1})
    assert precious.read_text() == '{"x": 1}\n{"torn' and (tmp_path / "run" / "a.json").read_text() == '{\n  "new": 1\n}\n'


@pytest.mark.parametrize("write", ["append", "repair"])
def test_rows_are_not_written_through_a_link(tmp_path, precious, write):
    (tmp_path / "run" / "trials.jsonl").symlink_to(precious)
    rows = JsonLines(tmp_path / "run" / "trials.jsonl", dict)
    with pytest.raises(UserError, match="trials.jsonl is a link, which is not written through"):
        rows.append({"x": 2}) if write == "append" else rows.repair()
    assert precious.read_text() == '{"x": 1}\n{"torn'


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(UserError, match="there is no ordinary file in this place"), atomic(tmp_path / name) as part:
            part.write_text("x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()
    for name in ("/dev/compress_env_test", "/dev/../dev/compress_env_test"):  # not even a new one, which the owner of the system could
        with pytest.raises(UserError, match="there is no ordinary file"), atomic(name):
            pytest.fail("it was about to be written")


def test_a_lock_is_not_taken_through_a_link(tmp_path, precious):
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match="is a link"), alone_in(tmp_path / "run"):
        pass
    assert precious.read_text() == '{"x": 1}\n{"torn'
