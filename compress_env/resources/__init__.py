"""Resources: what a network costs, behind one protocol (`base.py`). Importing this enters those that come with the package."""

from compress_env.resources import macs, memory, params  # noqa: F401 - each enters itself
from compress_env.resources.base import RESOURCES
from compress_env.resources.latency import resource  # noqa: F401

BUILT_IN: tuple[str, ...] = tuple(RESOURCES.names())
"""Names of the resources that come with the package; every observation has entries for them."""
