"""A policy that another search has learned: the student that it proposes, then others near it."""

from collections.abc import Sequence

import numpy as np

from compress_env.agents.saved import load_policy
from compress_env.extras import ONNX, need
from compress_env.objective import Objective
from compress_env.search.agent import Agent, Policy, Proposal

need("the agent policy", *ONNX)


class SavedPolicy(Agent):
    """Proposes what a saved policy decides on, then the same with noise on its actions.

    Args:
        objective: Begins the walks that the policy observes.
        evaluations: Not needed.
        seed: Of budgets and noise.
        file: Of `compress-env policy learn`, or the `policy.onnx` of a run folder; of whatever teacher and budget.
        noise: Standard deviation of the noise, in the unit of actions.

    Raises:
        UserError: If the file is no policy for these observations and actions.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int, *, file: str, noise: float = 0.2):
        self.objective, self.noise = objective, noise
        self._policy = load_policy(file, objective.embedding.names, objective.actions)
        self._budgets, self._rng = np.random.default_rng(seed), np.random.default_rng(seed)
        self._asked = 0

    def ask(self, n: int) -> Sequence[Proposal]:
        """Always `n` students; the very first one is the policy's own."""
        return [self._proposal() for _ in range(n)]

    def _proposal(self) -> Proposal:
        limits = self.objective.draw_limits(self._budgets)
        walk, actions = self.objective.begin(limits), []
        while not walk.done:
            action = self._policy(self.objective.observe(walk))
            noise = self._rng.normal(0, self.noise, 2) if self._asked else 0
            actions.append(np.clip(action + noise, -1, 1).astype(np.float32))
            walk.step(*actions[-1].tolist())
        self._asked += 1
        return Proposal(np.array(actions), limits)

    def policy(self) -> Policy:
        """The policy as it was saved."""
        return self._policy


policy = SavedPolicy
