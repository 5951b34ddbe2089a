"""Settings as texts, such as `tau=0.01`."""

from __future__ import annotations

import json
import re
from typing import Any

from compress_env.errors import UserError


def parse_setting(text: str, form: str = "NAME=VALUE") -> tuple[str, Any]:
    """Name and value of a text such as `tau=0.01`; a value that is not JSON stays a text. Raises UserError that names the form."""
    own = re.fullmatch(r"(.*\.py:\w+)(=)(.*)", text)  # a path may hold an = of its own
    name, equals, value = own.groups() if own else text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{text!r} is not {form}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
