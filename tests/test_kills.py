"""Searches that are killed, that find the disk full or the folder read-only: nothing that was recorded is lost or done again."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from benchmarks.kills import compare, complete_lines, differing
from compress_env.agents.sb3 import off_policy
from compress_env.errors import CannotWrite
from compress_env.report.runs import state_of
from compress_env.search import asked
from compress_env.search.run import search
from compress_env.search.store import RunFolder

COUNT = 16


def killed(make_planted, name: str, settings: dict, out: Path, after: int) -> tuple[list[bytes], bool]:
    """Search in a process of its own, which is killed when so many trials are on the disk; what is there then."""
    trials = out / "trials.jsonl"
    process = os.fork()
    if not process:
        try:
            search(make_planted(), name, COUNT, 0, out, False, settings)
            time.sleep(60)  # until the kill
        finally:
            os._exit(1)
    end = time.monotonic() + 60
    while len(complete_lines(trials)[0]) < after:
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
    return complete_lines(trials)


@pytest.mark.parametrize("name, settings", [("random", {}), ("tpe", {}), ("ddpg", {"gradient_steps": 2})])
def test_a_search_that_is_killed_twice_comes_to_the_trials_of_one_in_peace(name, settings, make_planted, tmp_path, monkeypatch):
    monkeypatch.setattr(off_policy, "SAVE_AFTER", 0.0)
    monkeypatch.setattr(asked, "SAVE_AFTER", 0.0)
    monkeypatch.setattr("compress_env.search.run._save_policy", lambda *_: None)  # which takes seconds
    peace = search(make_planted(), name, COUNT, 0, None, False, settings).trials
    states = [killed(make_planted, name, settings, tmp_path, after) for after in (3, 8)]
    assert state_of(tmp_path).state == "interrupted"
    search(make_planted(), name, COUNT, 0, tmp_path, False, settings)
    last, _ = complete_lines(tmp_path / "trials.jsonl")
    outcome = compare(name, RunFolder(tmp_path).trials(), peace, states, last)
    assert outcome.holds and len(outcome.trials_at) == 2 and outcome.trials_at[1] >= 8


def test_the_comparison_after_kills_finds_what_is_lost_done_twice_or_other(make_planted):
    trials = search(make_planted(), "random", 4, progress=False).trials
    lines = [b"a", b"b", b"c", b"d"]
    assert compare("random", trials, trials, [(lines[:2], True), (lines[:3], False)], lines).holds
    assert compare("random", trials, trials, [(lines[:3], False)], lines[:2]).lost == 1
    assert compare("random", trials, trials, [(lines[:3], False)], [b"a", b"x", b"c"]).lost == 1 == differing([b"a"], [])
    assert compare("random", [*trials, trials[0]], trials, [], lines).twice == 1
    assert not compare("random", trials[:3], trials, [], lines).same


def test_a_search_on_a_disk_that_is_full_stops_plainly_and_goes_on_when_there_is_room(make_planted, tmp_path):
    peace = search(make_planted(), "random", COUNT, 0, None, False).trials
    search(make_planted(), "random", 5, 0, tmp_path, False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "trials.jsonl").stat().st_size + 1500, limits[1]))
    try:
        with pytest.raises(CannotWrite, match=r"cannot write .*trials.jsonl: File too large"):
            search(make_planted(), "random", COUNT, 0, tmp_path, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found, torn = complete_lines(tmp_path / "trials.jsonl")
    assert torn and 5 < len(found) < COUNT
    resumed = search(make_planted(), "random", COUNT, 0, tmp_path, False).trials
    assert len(resumed) == COUNT and all(a.same(b) for a, b in zip(resumed, peace))
    assert not differing(found, complete_lines(tmp_path / "trials.jsonl")[0])


def test_a_run_in_a_read_only_folder_can_be_read_and_not_gone_on_with(make_planted, tmp_path, monkeypatch):
    search(make_planted(), "random", 3, 0, tmp_path, False)
    opened = os.open

    def read_only(path, flags, *rest, **more):
        if str(path).startswith(str(tmp_path)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **more)

    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(CannotWrite, match=r"cannot write .*: Read-only file system; choose another place"):
        search(make_planted(), "random", 5, 0, tmp_path, False)
    assert len(RunFolder(tmp_path).trials()) == 3 and state_of(tmp_path).state == "complete"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
