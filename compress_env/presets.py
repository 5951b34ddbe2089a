"""Earlier systems by one word: an agent, and the keywords of the environment that it had in its paper.

`--agent NAME` at the command line and `compress(agent=NAME)` take both; settings that are given come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from compress_env.errors import UnknownName
from compress_env.registry import unknown


@dataclass(frozen=True)
class Preset:
    """A system.

    Attributes:
        agent: Its agent, a name of `compress_env.search.run.AGENTS`.
        environment: Its keywords of the environment.
    """

    agent: str
    environment: Mapping[str, Any]


PRESETS = {
    # He et al., ECCV 2018. 0.2 is 1 - a_max for convolutions, and the smallest share in the authors' code.
    "amc": Preset("amc", {
        "schedule": "shrink", "min_width": 0.2, "ranking": "magnitude", "actions": "share", "observation": "amc", "shaping": False,
        "reward": "amc_error", "constraint": "hard", "evaluator": {"refit": True, "distill_steps": 0},
    }),
    # Ashok et al., ICLR 2018. 0.1 is the smallest shrinkage factor; the evaluator's steps are fewer than its five epochs.
    "n2n": Preset("reinforce", {
        "schedule": "two-step", "min_width": 0.1, "ranking": "magnitude", "actions": "share", "observation": "n2n", "shaping": False,
        "reward": "n2n", "constraint": "soft",
        "evaluator": {"inherit": False, "refit": False, "distill_steps": 100, "loss": "mimic", "lr": 0.002},
    }),
}  # fmt: skip
"""By name; `agent` may be another one than the system's name, if it is used in other environments, too."""


def preset(name: str) -> dict[str, Any]:
    """Keywords of `LayerRemoval-v0` by which it is as an earlier system had it; teacher, data and budget are none of them.

    `gym.make("LayerRemoval-v0", budget={"macs": 0.5}, **preset("amc"))`; `search(env, "amc")` then searches as it did.

    Raises:
        UnknownName: If there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownName(unknown("preset", name, sorted(PRESETS)))
    return deepcopy(dict(PRESETS[name].environment))


def with_preset(agent: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the environment: those that are given, and for the rest those of the system that the agent's name stands for."""
    if not isinstance(agent, str) or agent not in PRESETS:
        return dict(given)
    own = preset(agent)
    if isinstance(of_evaluator := given.get("evaluator"), Mapping):
        own["evaluator"] |= of_evaluator
    return {**own, **{name: value for name, value in given.items() if name != "evaluator" or not isinstance(value, Mapping)}}
