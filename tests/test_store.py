"""Files: whole or not there, lines that survive a crash, one place that writes them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from compress_env import files
from compress_env.errors import UserError
from compress_env.files import JsonLines, atomic, read_json, write_json

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Point:
    """A row."""

    x: float
    names: tuple[str, ...] = ()


def test_a_block_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic(path) as part:
        assert part.suffix == ".json" and part.parent == tmp_path
        part.write_text("half of")
        raise RuntimeError("no")
    assert read_json(path) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


def test_what_cannot_be_written_is_told_with_path_and_cure(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot write .*gone/a.json: there is no folder .*gone; make it first"):
        write_json(tmp_path / "gone" / "a.json", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder: there is no ordinary file in this place; choose another"):
        write_json(tmp_path / "folder", 1)
    assert os.listdir(tmp_path) == ["folder"]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda: write_json(tmp_path / "a.json", 1), lambda: JsonLines(tmp_path / "b", Point).append(Point(1.0))):
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device; make room, or choose another place"):
            write()


def test_a_damaged_or_missing_json_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(UserError, match=r"cannot read .*a.json: it is damaged .*; restore it, or delete it"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"cannot read .*b.json: No such file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("kept", range(1, 31))
def test_a_torn_last_line_is_left_out_wherever_it_tore_and_the_next_row_stands_alone(tmp_path, kept):
    rows = [Point(1.0, ("a", "b")), Point(2.5), Point(3.0, ("é",))]
    path = tmp_path / "rows.jsonl"
    file = JsonLines(path, Point)
    assert file.read() == [] and not path.exists()
    for row in rows:
        file.append(row)
    assert JsonLines(path, Point).read() == rows
    last = len(path.read_bytes().splitlines(keepends=True)[-1])
    os.truncate(path, path.stat().st_size - min(kept, last))
    assert file.read() == rows[:2]
    file.append(Point(9.0))
    assert file.read() == [*rows[:2], Point(9.0)]


@pytest.mark.parametrize("line", ['{"x": 1', "[1]", '{"y": 1}', "\xff", ""])
def test_a_damaged_line_that_is_not_torn_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": 1.0}\n' + line + '\n{"x": 2.0}\n', encoding="latin-1")
    with pytest.raises(UserError, match=r"line 2 of .*rows.jsonl is damaged, or was written by another version .*; restore"):
        JsonLines(path, Point).read()


def test_settings_on_the_first_line_have_to_match(tmp_path):
    path = tmp_path / "rows.jsonl"
    file = JsonLines(path, Point, header=True)
    assert file.settings == {} and file.begin({"seed": 1, "sizes": (1, 2)}) == []
    file.append(Point(1.0))
    with path.open("a") as end:
        end.write('{"x": 2')
    again = JsonLines(path, Point, header=True)
    assert again.settings == {"seed": 1, "sizes": [1, 2]} and again.begin({"sizes": [1, 2], "seed": 1}) == [Point(1.0)]
    for other in ({"seed": 2, "sizes": [1, 2]}, {"sizes": [1, 2]}):
        with pytest.raises(UserError, match=r"rows.jsonl was made with seed 1, not (2|None); give another file or folder"):
            again.begin(other)
    assert JsonLines(path, dict, header=True).read() == [{"x": 1.0, "names": []}]


def test_rows_that_were_made_with_no_settings_are_kept(tmp_path):
    file = JsonLines(tmp_path / "new" / "rows.jsonl", Point, header=True)
    assert file.begin({}) == []
    file.append(Point(1.0))
    assert file.begin({}) == [Point(1.0)]


def test_all_rows_are_written_anew_in_one_go(tmp_path):
    file = JsonLines(tmp_path / "rows.jsonl", Point)
    file.append(Point(1.0))
    file.write([Point(2.0), Point(3.0)])
    assert file.read() == [Point(2.0), Point(3.0)]


def test_one_place_writes_files_whole_and_reads_lines():
    for path in [*(ROOT / "compress_env").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]:
        if path.name != "files.py":
            text = path.read_text()
            assert not re.search(r"json\.loads\(line\)|os\.replace\(|NamedTemporaryFile|mkstemp|\.part\{|part\.replace", text), path
