"""Automatic, budget-exact compression of neural networks as a Gymnasium environment.

`import compress_env` registers the environments, so that `gym.make("LayerRemoval-v0")` works; it loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from compress_env.api import compress
    from compress_env.distilling import distil
    from compress_env.evaluator import Evaluator
    from compress_env.hub.transfer import pull_from_hub, push_to_hub
    from compress_env.objective import Objective
    from compress_env.presets import preset
    from compress_env.problem import Problem
    from compress_env.report.inspect import inspect
    from compress_env.spec import EnvironmentSpec, EvaluatorSettings, ProblemSpec, SearchSpec
    from compress_env.students import load_student
    from compress_env.surgery.build import build_student
    from compress_env.surgery.plan import Plan
    from compress_env.surgery.trace import trace

__version__ = "0.1.0"
_ENTRY_POINTS = {
    "LayerRemoval-v0": "compress_env.envs.layer_removal:LayerRemovalEnv",
    "LayerRemovalPlanted-v0": "compress_env.envs.planted:LayerRemovalPlantedEnv",
    "NetworkGrowth-v0": "compress_env.envs.growing:NetworkGrowthEnv",
    "NetworkTransformation-v0": "compress_env.envs.growing:NetworkTransformationEnv",
}
ENV_IDS = tuple(_ENTRY_POINTS)
__all__ = [
    "ENV_IDS", "EnvironmentSpec", "Evaluator", "EvaluatorSettings", "Objective", "Plan", "Problem", "ProblemSpec", "SearchSpec",
    "__version__", "build_student", "compress", "distil", "inspect", "load_student", "preset", "pull_from_hub", "push_to_hub",
    "trace",
]  # fmt: skip

for _id, _entry_point in _ENTRY_POINTS.items():
    if _id not in registry:
        register(_id, entry_point=_entry_point)

_PUBLIC = {
    "EnvironmentSpec": "compress_env.spec",
    "Evaluator": "compress_env.evaluator",
    "EvaluatorSettings": "compress_env.spec",
    "Objective": "compress_env.objective",
    "Plan": "compress_env.surgery.plan",
    "Problem": "compress_env.problem",
    "ProblemSpec": "compress_env.spec",
    "SearchSpec": "compress_env.spec",
    "build_student": "compress_env.surgery.build",
    "compress": "compress_env.api",
    "distil": "compress_env.distilling",
    "inspect": "compress_env.report.inspect",
    "load_student": "compress_env.students",
    "preset": "compress_env.presets",
    "pull_from_hub": "compress_env.hub.transfer",
    "push_to_hub": "compress_env.hub.transfer",
    "trace": "compress_env.surgery.trace",
}
"""Where public names are; they are imported when they are first used."""


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


if not TYPE_CHECKING:  # type checkers have the imports above, and know of no other names

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
