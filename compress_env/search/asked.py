"""What an agent that is asked knows beside the trials, on the disk: a search that is resumed need not ask for each of them again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from compress_env.errors import UserError
from compress_env.records import Damaged, value_of
from compress_env.search.agent import Agent, Resumable
from compress_env.search.recorder import Recorder
from compress_env.search.store import RunFolder

NAME = "agent.json"
SAVE_AFTER = 200.0
"""It is written when so many times the seconds have passed that this took the last time: half a percent of the time, however large it
is. Trials after the last time are asked for again."""


class AskedState:
    """Writes and reads the state of a `Resumable` agent, of which there is one student at a time; does nothing for others.

    Args:
        player: The agent.
        recorder: Has the recorded trials.
        folder: The run folder, or None.
        places: How many students are judged at once.
    """

    def __init__(self, player: Agent, recorder: Recorder, folder: RunFolder | None, places: int):
        self._player = player if isinstance(player, Resumable) and places == 1 else None
        self._recorder, self._folder = recorder, folder
        self._saved = self._took = 0.0

    def restore(self) -> None:
        """Have agent and recorder go on after the trials that the state on the disk is of, if there is one.

        Raises:
            UserError: If it is damaged.
        """
        if not self._player or not self._folder or not (self._folder.path / NAME).is_file():
            return
        recorder, data = self._recorder, self._folder.read(NAME)
        try:
            state = value_of(Mapping[str, Any], data, NAME)
            count = value_of(int, state["trials"], "trials")
            if not 0 < count <= min(len(recorder.trials), recorder.evaluations) or state["last"] != self._plan(count):
                return  # of another search, or of one that was longer
            recorder.rng.bit_generator.state = state["limits"]
            self._player.resume(state["agent"], recorder.trials[:count])
        except (Damaged, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self._folder.path / NAME} is damaged ({reason}); delete it, and the trials are gone through again"
            ) from error
        recorder.skip(count)

    def save(self, now: bool = False) -> None:
        """Write the state, if it is time; called when all that was asked for has been told.

        Args:
            now: Whether it is, however long ago the last time was.
        """
        began, count = time.monotonic(), self._recorder.played
        if not self._player or not self._folder or not count or not (now or began - self._saved > SAVE_AFTER * self._took):
            return
        state = {
            "trials": count, "last": self._plan(count), "limits": self._recorder.rng.bit_generator.state,
            "agent": self._player.state(),
        }  # fmt: skip
        self._folder.write(NAME, state, indent=None)
        self._saved = time.monotonic()
        self._took = self._saved - began

    def _plan(self, count: int) -> str:
        return self._recorder.trials[count - 1].plan.to_json()
