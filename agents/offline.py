"""Policies from recorded trials: an agent plays against models of the reward, one for each teacher, and nothing is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from compress_env.agents.policy_selection import decided
from compress_env.agents.surrogate import Surrogate, features, sure
from compress_env.contexts import one_thread, own_random_state
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.search.run import Policy, find_agent
from compress_env.search.trial import Trial
from compress_env.walk.observation import entries
from compress_env.walk.walk import Walk

BUDGETS = 25
"""Evenly spread over the range; an episode has one of them."""
LOOKS = 40
"""How often, while an agent learns, it is looked at whether its policy is the best so far."""
SHIFTS = {("channels in", "channels out"): (-0.15, 0.3), ("spatial size in", "spatial size out"): (-0.1, 0.4)}
"""Entries of the observation that are logarithms of sizes, and what is added to them, drawn for each episode: from a third of the
channels to twelve times as many, from a quarter of the positions to 250 times. Decisions are then about shares of cost and what is
redundant, which other teachers have too, and not about absolute sizes, which they do not."""
MOST = 600
"""Recorded students of a teacher that its model takes in, at most; it takes the cube of them to fit."""


class SurrogateTeacher:
    """The environment of a teacher and a model of the reward of its students, fitted to trials of whatever agents and budgets."""

    def __init__(self, env: LayerRemovalEnv, trials: Sequence[Trial], rng: np.random.Generator):
        self.env, self.model = env, Surrogate()
        graph = env.graph
        known = list({t.plan.key: t for t in trials if not t.outcome.failed}.values())
        for i in sorted(rng.permutation(len(known))[:MOST]):
            plan = known[i].plan
            self.model.observe(features(graph, frozenset(plan.removed), graph.widths(plan)), known[i].reward)
        self.limits = env.budgets(BUDGETS)
        uniform = np.zeros(2, np.float32)
        self.uniform = sure(self.model, np.array([decided(env, lambda _: uniform, limits) for limits in self.limits]))
        self.gap = np.maximum(max(self.model.rewards) - self.uniform, 0.02 * np.ptp(self.model.rewards))

    def gain(self, plans: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """What plans with these features `(n, d)` are sure to gain over the uniform ones at `budgets` `(n,)`, by their numbers.

        0 for those, 1 for the best reward that was recorded at any budget.
        """
        return (sure(self.model, plans) - self.uniform[budgets]) / self.gap[budgets]


class SurrogateEnv(gym.Env):
    """`LayerRemoval-v0` in actions and observations, with a teacher and a budget drawn for each episode, and predicted rewards.

    The reward comes at the end: the plan's `SurrogateTeacher.gain`, at least -1. The sizes that are observed are those of a
    network that is wider or narrower, with larger or smaller images (`SHIFTS`; domain randomisation, Tobin et al., IROS 2017).
    """

    def __init__(self, teachers: Sequence[SurrogateTeacher], episodes: int, bar: tqdm):
        self.teachers, self._bar = teachers, bar
        self.action_space, self.observation_space = teachers[0].env.action_space, teachers[0].env.observation_space
        self.steps = max(t.env.steps for t in teachers)
        self.played = 0
        place = {name: i for i, (name, _, _) in enumerate(entries())}
        self._sizes = [([place[name] for name in names], span) for names, span in SHIFTS.items()]
        self._shift = np.zeros(len(place), np.float32)
        self._every = max(1, episodes // LOOKS)
        self.looked_at = np.arange(0, BUDGETS, 3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._teacher = self.teachers[self.np_random.integers(len(self.teachers))]
        self._budget = int(self.np_random.integers(BUDGETS))
        env = self._teacher.env
        self._episode = Walk(env.problem, self._teacher.limits[self._budget], env.hard)
        for places, span in self._sizes:
            self._shift[places] = self.np_random.uniform(*span)
        return self._observation(), {}

    def _observation(self) -> np.ndarray:
        seen = self._teacher.env.embedding(self._episode) + self._shift
        return np.clip(seen, self.observation_space.low, self.observation_space.high)

    def step(self, action):
        env, episode = self._teacher.env, self._episode
        episode.step(*np.clip(action, -1, 1).tolist())
        reward = 0.0
        if episode.done:
            self.played += 1
            self._bar.update()
            plan = features(env.graph, episode.removed, episode.widths)
            reward = max(-1.0, float(self._teacher.gain(plan[None], np.array([self._budget]))[0]))
        return self._observation(), reward, episode.done, False, {}

    # What `PolicySelection` asks for

    @property
    def begins_a_round(self) -> bool:
        """Whether it is time for a look at the policy."""
        return self.played % self._every == 0

    def plans_of(self, policy: Policy) -> list[np.ndarray]:
        """For each teacher, features of the plans that `policy` decides on, over all budgets."""
        return [np.array([decided(t.env, policy, t.limits[i]) for i in self.looked_at]) for t in self.teachers]

    def trust(self, plans: list[np.ndarray]) -> float:
        """Their gain, the mean over budgets and teachers."""
        return float(np.mean([t.gain(own, self.looked_at).mean() for t, own in zip(self.teachers, plans)]))


def learn(
    teachers: Sequence[SurrogateTeacher], agent: str, episodes: int, seed: int, path: Path,
    *, settings: Mapping[str, Any] | None = None, progress: bool = True,
) -> list[float]:  # fmt: skip
    """Let `agent` play so many episodes of a `SurrogateEnv`, and write its policy to `path`, for `load_policy`.

    Returns for each teacher the gain that the policy is trusted with, the mean over budgets. Ctrl-C ends the learning early. Raises
    UserError if the agent learns no policy that can be saved.
    """
    factory = find_agent(agent, settings)
    with tqdm(total=episodes, desc=f"{agent} rehearses", unit="episode", disable=not progress) as bar:
        env = SurrogateEnv(teachers, episodes, bar)
        with own_random_state(), one_thread():
            player = factory(env, episodes, seed, **(settings or {}))
            if not hasattr(player, "save_policy"):
                raise UserError(f"the agent {agent!r} leaves no policy; take one of Stable-Baselines3's, such as ddpg")
            try:
                player.run(None)
            except KeyboardInterrupt:
                bar.write(f"interrupted after {env.played:,} episodes; what was learned so far is kept")
            player.save_policy(path)
            plans = env.plans_of(player.policy())
    return [float(np.mean(t.gain(own, env.looked_at))) for t, own in zip(teachers, plans)]
