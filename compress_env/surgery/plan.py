"""`Plan`: what becomes of each part of the teacher, as a value that can be hashed, stored and replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compress_env.records import Damaged, value_of

JSON = {"removed": tuple[str, ...], "widths": Mapping[str, int], "inserted": tuple[str, ...] | None}
"""Fields of a plan in JSON."""


@dataclass(frozen=True)
class Plan:
    """Which blocks are removed or inserted, and how many channels the groups have.

    removed: names of blocks, sorted. widths: `(group, channels)` pairs, sorted; a group that is absent keeps all channels.
    inserted: names of blocks that the network did not have as it came, sorted.
    Equal students have equal plans if made by `LayerGraph.canonical`.
    """

    removed: tuple[str, ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    inserted: tuple[str, ...] = ()

    @classmethod
    def of(cls, removed: Iterable[str] = (), widths: Mapping[str, int] | None = None, inserted: Iterable[str] = ()) -> Plan:
        """The plan without the blocks `removed` and with those `inserted`, whose groups have this many channels."""
        numbers = tuple(sorted((g, int(n)) for g, n in (widths or {}).items()))
        return cls(tuple(sorted(removed)), numbers, tuple(sorted(inserted)))

    @property
    def switched(self) -> frozenset[str]:
        """Blocks that are not as they came: those removed, and those inserted."""
        return frozenset((*self.removed, *self.inserted))

    def to_json(self) -> str:
        """One line of JSON, the same for equal plans."""
        inserted = {"inserted": list(self.inserted)} if self.inserted else {}
        return json.dumps({"removed": list(self.removed), "widths": dict(self.widths), **inserted})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `to_json`. Raises ValueError if it is none."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise Damaged("the plan is no object")
        found = {name: value_of(hint, data.get(name), name) for name, hint in JSON.items()}
        return cls.of(found["removed"], found["widths"], found["inserted"] or ())

    @property
    def key(self) -> str:
        """A short name that differs for different plans."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
