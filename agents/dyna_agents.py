"""`dyna-ddpg` and the like: a surrogate model and mutations find students, the network learns beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress_env.agents.ddpg import ddpg
from compress_env.agents.sac import sac
from compress_env.agents.sb3 import OffPolicyAgent
from compress_env.agents.td3 import td3
from compress_env.objective import Objective


def _with_model(agent: Callable[..., OffPolicyAgent]) -> Callable[..., OffPolicyAgent]:
    def factory(objective: Objective, evaluations: int, seed: int, **settings: Any) -> OffPolicyAgent:
        return agent(objective, evaluations, seed, **{"model_episodes": 4, "mutations": 300, **settings})

    return factory


dyna_ddpg, dyna_td3, dyna_sac = _with_model(ddpg), _with_model(td3), _with_model(sac)
