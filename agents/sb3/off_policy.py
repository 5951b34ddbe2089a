"""Off-policy algorithms, with or without episodes against a surrogate model."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from compress_env.agents.dyna import Dyna
from compress_env.agents.policy_selection import PolicyScorer, PolicySelection
from compress_env.agents.saved import load_policy
from compress_env.agents.sb3 import checkpoints
from compress_env.agents.sb3.algorithm import StableBaselinesAgent, start_at_zero
from compress_env.agents.sb3.noise import DecayingNoise
from compress_env.errors import UserError
from compress_env.objective import Objective

UPDATES = 6
"""For each transition, where every episode is evaluated: evaluations are dear, and updates cost less."""
SAVE_AFTER = 200.0
"""A checkpoint is written when so many times the seconds have passed that the last one took: half a percent of the time, however large
it is. What lies after the last one is learned again from the recorded trials."""


class OffPolicyAgent(StableBaselinesAgent):
    """An off-policy algorithm with AMC's schedule (He et al., ECCV 2018): random episodes, then learned ones with decaying noise.

    The first student is that of the action 0. Updates follow each episode, several a transition where all are evaluated. With
    `model_episodes`, most episodes are played against a surrogate model (`Dyna`), and the policy that is left is the one that the
    model rates highest of those on the way (`PolicySelection`). Where all episodes are against one (`SurrogateObjective`), none is
    added.

    Args:
        algorithm: A class, or its name.
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        model_episodes: Episodes against a model of the reward for each evaluated one; 0 has every episode evaluated.
        mutations: Mutants of the best students that the model judges for each evaluated one; needs model episodes.
        start: A file of a policy that was learned before, whose proposal is the second student. Needs model episodes.
        warmup_share: Share of the agent's episodes that are random; if None 0.02 with a model, which learns most from students near
            the allocation, else 0.2.
        noise: Standard deviation of the exploration after that, first and last, in the unit of actions; None for algorithms that
            explore by themselves.
        actor_delay: Updates of the critic for each of the actor of DDPG and TD3.
        settings: Of the algorithm, and `reward_scale`.

    Raises:
        UserError: For options that are no numbers of episodes, or that would be ignored.
    """

    def __init__(
        self, algorithm: str | type[BaseAlgorithm], objective: Objective, evaluations: int, seed: int, *,
        model_episodes: int = 0, mutations: int = 0, start: str | None = None, warmup_share: float | None = None,
        noise: tuple[float, float] | None = (0.4, 0.1), actor_delay: int = 2, **settings: Any,
    ):  # fmt: skip
        for name, value in (("model_episodes", model_episodes), ("mutations", mutations)):
            if not isinstance(value, int) or value < 0:
                raise UserError(f"{name} is a number of episodes, 0 or more; got {value!r}")
        pair = isinstance(noise, (list, tuple)) and len(noise) == 2
        if noise is not None and not (pair and all(isinstance(n, (int, float)) and 0 < n < math.inf for n in noise)):
            raise UserError(f"noise is two positive numbers, the first and the last deviation, or null; got {noise!r}")
        if warmup_share is not None and not (isinstance(warmup_share, (int, float)) and 0 <= warmup_share <= 1):
            raise UserError(f"warmup_share is a share, from 0 to 1; got {warmup_share!r}")
        if not isinstance(actor_delay, int) or actor_delay < 1:
            raise UserError(f"actor_delay is a number of updates, 1 or more; got {actor_delay!r}")
        self.offline = isinstance(objective, PolicyScorer)
        if self.offline and (model_episodes or mutations or start):
            raise UserError("all episodes are against a model here; leave model_episodes, mutations and start out")
        if (mutations or start) and not model_episodes:
            raise UserError("mutations and start need model episodes; take dyna-ddpg, or give model_episodes=4, too")
        self.model_episodes, self.mutations = model_episodes, mutations
        self.start = load_policy(start, objective.embedding.names, objective.actions) if start else None
        self.given = 2 if start else 1  # the student of the action 0, and the proposal
        with_model = bool(model_episodes) or self.offline
        rounds = max(0, evaluations - self.given)
        played = self.given + model_episodes * rounds if model_episodes else evaluations
        stored = played + (min(model_episodes, self.mutations) + 1) * rounds if model_episodes else evaluations
        if warmup_share is None:
            warmup_share = 0.02 if with_model else 0.2
        warmup = max(1, round(warmup_share * (played - self.given)))
        steps = objective.steps
        defaults = dict(
            learning_rate=1e-3, buffer_size=(stored + 1) * steps, learning_starts=warmup * steps, batch_size=64, gamma=1.0,
            train_freq=(1, "episode"), gradient_steps=steps if with_model else UPDATES * steps, n_steps=steps,
            policy_kwargs=dict(net_arch=[128, 128]),
            action_noise=DecayingNoise(2, *noise, warmup + 1, played) if noise else None,
        )  # fmt: skip
        super().__init__(algorithm, objective, evaluations, seed, **{"reward_scale": 20.0, **defaults, **settings})
        self.timesteps, self.episodes_each = played * steps, model_episodes or 1
        self.actor_delay = actor_delay
        self.dyna: Dyna | None = None
        self.selection: PolicySelection | None = None

    @property
    def drives_several(self) -> bool:
        """Whether it can drive several environments; with a model, the next student depends on the one before."""
        return super().drives_several and not self.model_episodes

    def build(self, env: gym.Env) -> None:
        """Make `model`, with `env` behind a surrogate model, if there is to be one, and wrappers."""
        if self.model_episodes:
            env = self.dyna = Dyna(env, self.given, self.model_episodes, self.mutations, self.seed)
        super().build(env)
        self.model: OffPolicyAlgorithm
        scorer = self.objective if self.offline else self.dyna
        self.selection = PolicySelection(scorer) if scorer else None  # type: ignore[arg-type]
        noise = self.model.action_noise
        noises = noise.noises if isinstance(noise, VectorizedActionNoise) else [noise]
        self.noises = [each for each in noises if isinstance(each, DecayingNoise)]
        if isinstance(self.model, stable_baselines3.TD3):  # DDPG is one too
            self.model.policy_delay = self.actor_delay
            start_at_zero(self.model)

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play the episodes that are left; the state is saved at the end of roll-outs, when their reward is stored."""
        self.build(env)
        done = self._restored(env, checkpoint) if checkpoint and checkpoint.exists() else 0
        begin = not done
        if begin:
            self.play_zero()
            done = 1
            if self.start and done < self.evaluations:
                self._play_start()
                done = 2
        if done < self.evaluations:
            self.learn(self.timesteps, callback=_BetweenEpisodes(self, checkpoint), reset_num_timesteps=begin)
            if checkpoint:
                checkpoints.save(self, checkpoint, over=True)
        if self.selection:
            self.selection.load_best(self.model.actor)

    def _restored(self, env: gym.Env, checkpoint: Path) -> int:
        """Episodes of a checkpoint that is taken up; 0 if it cannot be, and the recorded trials are played again."""
        try:
            return checkpoints.restore(self, checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):  # something in it is missing, or of another kind
            env.get_wrapper_attr("skip")(0)
            self.build(env)
            return 0

    def _play_start(self) -> None:
        """The student of the policy that the search goes on from; the agent learns from it like from an episode of its own."""
        assert self.start and self.dyna
        observation, _ = self.env.reset()
        done = False
        while not done:
            observation, _, done, _, _ = self.env.step(self.start(observation))
        self.dyna.demonstrations.append(self.dyna.model.students[-1])


class _BetweenEpisodes(BaseCallback):
    """Adds demonstrations to the replay buffer, looks at the actor once a round, and saves.

    It looks and saves after the updates of a roll-out, when the next one begins.
    """

    def __init__(self, agent: OffPolicyAgent, path: Path | None):
        super().__init__()
        self.agent, self.path = agent, path
        self.saved = self.took = 0.0

    def _on_rollout_end(self) -> None:
        if self.agent.dyna:
            assert self.agent.model.replay_buffer is not None
            for i, (before, after, action, reward, done) in enumerate(self.agent.dyna.transitions()):
                given = np.array([self.agent.relative.scaled(reward, i % self.agent.steps)])
                self.agent.model.replay_buffer.add(before[None], after[None], action[None], given, np.array([done]), [{}])

    def _on_rollout_start(self) -> None:
        selection = self.agent.selection
        if selection and selection.scorer.due:
            selection.look(self.agent.model.actor, self.agent.policy())
        if self.path and self.agent.env.get_wrapper_attr("played") and self._due():
            began = time.monotonic()
            checkpoints.save(self.agent, self.path)
            self.saved = time.monotonic()
            self.took = self.saved - began

    def _due(self) -> bool:
        return time.monotonic() - self.saved > SAVE_AFTER * self.took

    def _on_step(self) -> bool:
        return True
