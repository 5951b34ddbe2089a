"""Policy selection: of the policies that an agent had on the way, the one whose students a model of the reward rates highest is left.

An actor that is trained to the end against a model finds the places where the model is wrong, and may end with one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from compress_env.agents.surrogate import point
from compress_env.allocation.solver import Allocation
from compress_env.objective import Objective
from compress_env.search.agent import Policy

KEPT = 5
"""How many policies are kept, for the model changes its mind."""


@runtime_checkable
class PolicyScorer(Protocol):
    """Says what a policy is worth without evaluating its students."""

    @property
    def due(self) -> bool:
        """Whether it is time for a look at the policy."""

    def plans_of(self, policy: Policy) -> Any:
        """The plans that a policy comes to, as `score` takes them: arrays, or lists of arrays."""

    def score(self, plans: Any) -> float:
        """The reward that they are likely to reach, by what is known now."""


def decided(objective: Objective, policy: Policy, limits: Mapping[str, float]) -> np.ndarray:
    """The plan that a policy comes to, as by `point`; no student is built.

    Args:
        objective: Begins the walk.
        policy: What decides.
        limits: By resource, in its unit.
    """
    walk = objective.begin(limits)
    while not walk.done:
        walk.step(*np.clip(policy(objective.observe(walk)), -1, 1).tolist())
    return point(objective, Allocation(walk.removed, walk.widths), limits)


class PolicyCandidate(NamedTuple):
    """An actor's weights, and the plans that its policy comes to."""

    weights: dict[str, torch.Tensor]
    plans: Any


class PolicySelection:
    """Looks at an actor now and then, and gives back the best of them.

    Args:
        scorer: Rates policies.

    Attributes:
        candidates: The best so far, the best of them first when it was last looked.
    """

    def __init__(self, scorer: PolicyScorer):
        self.scorer = scorer
        self.candidates: list[PolicyCandidate] = []

    def look(self, actor: nn.Module, policy: Policy) -> None:
        """Keep the weights of `actor` if the plans of `policy`, which acts by them, are among the best so far."""
        plans = self.scorer.plans_of(policy)
        if any(all(map(np.array_equal, plans, c.plans)) for c in self.candidates):
            return
        self.candidates.append(PolicyCandidate({k: v.clone() for k, v in actor.state_dict().items()}, plans))
        self.candidates.sort(key=self._score, reverse=True)
        del self.candidates[KEPT:]

    def load_best(self, actor: nn.Module) -> None:
        """Load the best weights into `actor`, by what is known now."""
        if self.candidates:
            actor.load_state_dict(max(self.candidates, key=self._score).weights)

    def _score(self, candidate: PolicyCandidate) -> float:
        return self.scorer.score(candidate.plans)
