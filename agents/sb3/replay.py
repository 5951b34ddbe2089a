"""A replay buffer as a checkpoint keeps it: the rows that are filled, and no observation twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

SPACES = ("observation_space", "action_space")
"""Of a replay buffer; they are the environment's."""
NEXT = "next_observations"


def packed(buffer: ReplayBuffer) -> dict[str, Any]:
    """What `unpack` takes to make a new buffer the same, bit for bit.

    A transition's next observation is mostly the observation of the row after it, and is left out there.

    Args:
        buffer: Of Stable-Baselines3, or a class that inherits from it.
    """
    used = buffer.size()
    values = {name: value for name, value in vars(buffer).items() if name not in SPACES}
    rows = {name: values.pop(name)[:used] for name in list(values) if _rows(values[name], buffer)}
    last = rows.pop(NEXT, None)
    if last is None or "observations" not in rows:
        return {"values": values, "rows": rows if last is None else rows | {NEXT: last}, "other": None}
    differs = np.ones(used, bool)
    if used > 1:
        same = last[:-1] == rows["observations"][1:]
        differs[:-1] = ~same.reshape(used - 1, -1).all(axis=1)
    return {"values": values, "rows": rows, "other": (np.flatnonzero(differs), last[differs])}


def unpack(buffer: ReplayBuffer, state: dict[str, Any]) -> None:
    """Fill a new buffer. Raises LookupError or ValueError if it is of another shape.

    Args:
        buffer: Made with the arguments of the one that was packed.
        state: Of `packed`.
    """
    vars(buffer).update(state["values"])
    for name, found in state["rows"].items():
        vars(buffer)[name][: len(found)] = found
    if state["other"] is not None:
        places, found = state["other"]
        used, after = len(state["rows"]["observations"]), vars(buffer)[NEXT]
        after[: max(0, used - 1)] = state["rows"]["observations"][1:]
        after[places] = found


def _rows(value: Any, buffer: ReplayBuffer) -> bool:
    """Whether it holds a row a transition."""
    return isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == buffer.buffer_size
