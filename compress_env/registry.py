"""Names for things that can be swapped: rewards, resources, losses, teachers, data sets, agents."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from compress_env.errors import UnknownName, UserError
from compress_env.own_code import load_module


class Registry:
    """A table from names to objects. `get` also takes `module:attribute` and `path/to/file.py:attribute`."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """A decorator that enters the object under `name`."""

        def enter(entry: Any) -> Any:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def items(self) -> list[tuple[str, Any]]:
        """All names with their entries, sorted by name."""
        return sorted(self._entries.items())

    def known(self, name: str) -> Any | None:
        """The entry named `name`, None if there is none; nothing is loaded."""
        return self._entries.get(name)

    def get(self, spec: str) -> Any:
        """The entry named `spec`, or the object that `module:attribute` points at. Raises UnknownName or UserError."""
        if spec in self._entries:
            return self._entries[spec]
        if ":" in spec:
            return load_attribute(spec, self.kind)
        raise UnknownName(unknown(self.kind, spec, self.names()))


def unknown(kind: str, name: str, names: list[str]) -> str:
    """The message for a name that is not among `names`, with the nearest one."""
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"no {kind} {name!r}; {hint}"


def load_attribute(spec: str, kind: str) -> Any:
    """The object at `module:attribute` or `path/to/file.py:attribute`. Raises UserError that names what is missing."""
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise UserError(f"{kind} {spec!r} is not module:attribute or path/to/file.py:attribute")
    module = load_module(place, f"{kind} {spec!r}")
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UnknownName(f"{kind} {spec!r}: {unknown('attribute', attribute, public)}")
    return getattr(module, attribute)
