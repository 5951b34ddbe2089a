"""The policy that a search leaves: among those that its agent had on the way, the one whose students the model trusts most.

An actor that is trained to the end against a model finds the places where the model is wrong, and may end with one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from compress_env.agents.imagination import Imagination
from torch import nn

KEPT = 5
BUDGETS = 5
"""Evenly spread over what the environment draws from, if its budget is a range."""


class _Actor(NamedTuple):
    """Weights, and features `(budgets, d)` of the plans that they lead to."""

    weights: dict[str, torch.Tensor]
    plans: np.ndarray


class TrustedActor:
    """Looks at an actor now and then, and gives back the best of them."""

    def __init__(self, imagination: Imagination):
        self.imagination = imagination
        self.actors: list[_Actor] = []

    def look(self, actor: nn.Module, policy: Callable[[np.ndarray], np.ndarray]) -> None:
        """Keep the weights of `actor` if what `policy` decides with them is among the best so far."""
        plans = self.imagination.plans_of(policy, self.imagination.env.unwrapped.budgets(BUDGETS))
        if any(np.array_equal(plans, a.plans) for a in self.actors):
            return
        self.actors.append(_Actor({k: v.clone() for k, v in actor.state_dict().items()}, plans))
        self.actors.sort(key=self._trust, reverse=True)
        del self.actors[KEPT:]

    def give(self, actor: nn.Module) -> None:
        """Load the best weights into `actor`, by what the model knows now."""
        if self.actors:
            actor.load_state_dict(max(self.actors, key=self._trust).weights)

    def _trust(self, actor: _Actor) -> float:
        """A reward that the actor's students are likely to reach, on average over budgets."""
        mean, deviation = self.imagination.model(actor.plans)
        return float((mean - deviation).mean())
