"""The policy that is left: among those that an agent had on the way, the one whose students a model of the reward trusts most.

An actor that is trained to the end against a model finds the places where the model is wrong, and may end with one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from compress_env.agents.surrogate import features
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.search.run import Policy
from compress_env.walk.walk import Walk

KEPT = 5


class Judge(Protocol):
    """Says what a policy is worth without evaluating its students."""

    @property
    def begins_a_round(self) -> bool:
        """Whether it is time for a look at the policy."""

    def plans_of(self, policy: Policy) -> Any:
        """The plans that a policy comes to, as `trust` takes them: arrays, or lists of arrays."""

    def trust(self, plans: Any) -> float:
        """What they are likely to reach, by what is known now."""


def decided(env: LayerRemovalEnv, policy: Policy, limits: Mapping[str, float]) -> np.ndarray:
    """`features` of the plan that a policy comes to within `limits`, without a student."""
    episode = Walk(env.problem, limits, env.hard)
    while not episode.done:
        episode.step(*np.clip(policy(env.embedding(episode)), -1, 1).tolist())
    return features(env.graph, episode.removed, episode.widths)


def rehearses(env: gym.Env) -> bool:
    """Whether the environment is itself a judge: no student is evaluated, and episodes are cheap."""
    return hasattr(env.unwrapped, "trust")


class _Actor(NamedTuple):
    weights: dict[str, torch.Tensor]
    plans: Any


class PolicySelection:
    """Looks at an actor now and then, and gives back the best of them."""

    def __init__(self, judge: Judge):
        self.judge = judge
        self.actors: list[_Actor] = []

    def look(self, actor: nn.Module, policy: Policy) -> None:
        """Keep the weights of `actor` if what `policy` decides with them is among the best so far."""
        plans = self.judge.plans_of(policy)
        if any(all(map(np.array_equal, plans, a.plans)) for a in self.actors):
            return
        self.actors.append(_Actor({k: v.clone() for k, v in actor.state_dict().items()}, plans))
        self.actors.sort(key=self._trust, reverse=True)
        del self.actors[KEPT:]

    def give(self, actor: nn.Module) -> None:
        """Load the best weights into `actor`, by what is known now."""
        if self.actors:
            actor.load_state_dict(max(self.actors, key=self._trust).weights)

    def _trust(self, actor: _Actor) -> float:
        return self.judge.trust(actor.plans)
