"""Stable-Baselines3's scalars for TensorBoard, in a search that may be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import TensorBoardOutputFormat

from compress_env.search.tensorboard import last_step


class NewScalars(TensorBoardOutputFormat):
    """Writes steps that are not there yet: an agent that is resumed comes to the same ones again.

    Args:
        folder: Of the events.
    """

    def __init__(self, folder: Path):
        self._last = last_step(folder)
        super().__init__(str(folder))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write what was logged at a step."""
        if step > self._last:
            super().write(key_values, key_excluded, step)
