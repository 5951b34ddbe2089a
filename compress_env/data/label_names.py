"""What a data set calls its labels."""

from __future__ import annotations

from typing import Any


def label_names(dataset: Any) -> tuple[str, ...]:
    """The names of a data set's whole-number labels, in their order, as torchvision's data sets have them; nothing without any."""
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()
