"""Automatic, budget-exact compression of neural networks as a Gymnasium environment.

`import compress_env` registers the environments, so that `gym.make("LayerRemoval-v0")` works; it loads no torch.
"""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"
_ENTRY_POINTS = {
    "LayerRemoval-v0": "compress_env.envs.layer_removal:LayerRemovalEnv",
    "LayerRemovalPlanted-v0": "compress_env.envs.planted:LayerRemovalPlantedEnv",
}
ENV_IDS = tuple(_ENTRY_POINTS)
__all__ = ["ENV_IDS", "Plan", "__version__", "build_student", "compress", "inspect", "trace"]

for _id, _entry_point in _ENTRY_POINTS.items():
    if _id not in registry:
        register(_id, entry_point=_entry_point)

_PUBLIC = {
    "compress": "compress_env.api",
    "inspect": "compress_env.report.inspect",
    "trace": "compress_env.surgery.trace",
    "build_student": "compress_env.surgery.build",
    "Plan": "compress_env.surgery.plan",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used."""
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
