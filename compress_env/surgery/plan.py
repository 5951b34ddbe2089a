"""`Plan`: what becomes of each part of the teacher, as a value that can be hashed, stored and replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compress_env.records import Damaged, value_of

JSON = {"removed": tuple[str, ...], "widths": Mapping[str, int]}
"""Fields of a plan in JSON."""


@dataclass(frozen=True)
class Plan:
    """Which blocks are removed and how many channels the groups keep.

    removed: names of blocks, sorted. widths: `(group, channels)` pairs, sorted; a group that is absent keeps all channels.
    Equal students have equal plans if made by `LayerGraph.canonical`.
    """

    removed: tuple[str, ...] = ()
    widths: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, removed: Iterable[str] = (), widths: Mapping[str, int] | None = None) -> Plan:
        """The plan without these blocks, whose groups keep this many channels."""
        return cls(tuple(sorted(removed)), tuple(sorted((g, int(n)) for g, n in (widths or {}).items())))

    def to_json(self) -> str:
        """One line of JSON, the same for equal plans."""
        return json.dumps({"removed": list(self.removed), "widths": dict(self.widths)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `to_json`. Raises ValueError if it is none."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise Damaged("the plan is no object")
        found = {name: value_of(hint, data.get(name), name) for name, hint in JSON.items()}
        return cls.of(found["removed"], found["widths"])

    @property
    def key(self) -> str:
        """A short name that differs for different plans."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
