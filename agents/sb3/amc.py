"""AMC's DDPG on Stable-Baselines3's: one action, its exploration, two rates, and the final reward at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy.stats import truncnorm
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from compress_env.agents.sb3.algorithm import Deterministic, StableBaselinesAgent
from compress_env.objective import Objective
from compress_env.search.agent import Policy

EPISODES, WARMUP = 400, 100
"""Of the paper's searches on CIFAR-10, all and those at random."""
NOISE_DECAY = 0.95
MEMORY = 100
"""Episodes in the replay buffer, as in the authors' code."""


class OneAction(gym.ActionWrapper):
    """One number in [-1, 1] in place of two: the sparsity; blocks stay."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """The two numbers that the environment takes."""
        return np.array([1.0, action[0]], np.float32)


class FinalRewards(ReplayBuffer):
    """Each transition of an episode has the reward of its end, less a moving average (He et al., section 3.2).

    Args:
        momentum: How far the average goes to the mean of each batch that is drawn.
        arguments: Of `ReplayBuffer`, its own among them.

    Attributes:
        baseline: The average; None before a batch is drawn.
    """

    def __init__(self, *arguments: Any, momentum: float = 0.5, **settings: Any):
        super().__init__(*arguments, **settings)
        self.momentum = momentum
        self.baseline: float | None = None
        self._episode: list[int] = []

    def add(self, obs: np.ndarray, next_obs: np.ndarray, action: np.ndarray, reward: np.ndarray, done: np.ndarray, infos: Any) -> None:
        """Add a transition; the last one of an episode gives its reward to those before."""
        self._episode.append(self.pos)
        super().add(obs, next_obs, action, reward, done, infos)
        if done[0]:
            self.rewards[self._episode] = reward
            self._episode = []

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        mean = samples.rewards.mean().item()
        self.baseline = mean if self.baseline is None else self.baseline + self.momentum * (mean - self.baseline)
        return samples._replace(rewards=samples.rewards - self.baseline)


class TruncatedDDPG(DDPG):
    """DDPG whose actions are drawn from a normal distribution that is truncated to their range, around the actor's.

    Args:
        arguments: Of `DDPG`, its own among them; `learning_rate` is the critic's.
        actor_learning_rate: Adam's, for the actor.
        noise: Standard deviation where all actions lie in [0, 1].
        noise_decay: Its factor an episode after the random ones.
        warmup: Episodes at random.
    """

    def __init__(self, *arguments: Any, actor_learning_rate: float, noise: float, noise_decay: float, warmup: int, **settings: Any):
        self.actor_learning_rate, self.noise, self.noise_decay, self.warmup = actor_learning_rate, noise, noise_decay, warmup
        super().__init__(*arguments, **settings)

    @property
    def deviation(self) -> float:
        """Of the distribution in this episode, where all actions lie in [0, 1]."""
        return self.noise * self.noise_decay ** max(0, self._episode_num - self.warmup)

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.actor.optimizer.param_groups:
            group["lr"] = self.actor_learning_rate

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None
        mean = self.policy.scale_action(self.predict(self._last_obs, deterministic=True)[0])
        deviation = 2 * self.deviation  # actions are numbers in [-1, 1] here
        drawn = mean
        if deviation > 1e-6:  # less is none, and no distribution
            low, high = (-1 - mean) / deviation, (1 - mean) / deviation
            drawn = truncnorm.rvs(low, high, mean, deviation, mean.shape).astype(np.float32)
        return self.policy.unscale_action(drawn), drawn


class BothActions(nn.Module):
    """A policy of one action, as `save_policy` takes it.

    Args:
        policy: Gives `(n, 1)`.
    """

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> Tensor:
        """Actions `(n, 2)` for observations `(n, entries)`."""
        sparsity = self.policy(observation)
        return torch.cat([torch.ones_like(sparsity), sparsity], 1)


class AMCAgent(StableBaselinesAgent):
    """AMC's agent. An interrupted search is played again from its trials.

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        warmup: Episodes at random.
        reward_momentum: Of the baseline of rewards.
        settings: Of `TruncatedDDPG`.
    """

    def __init__(
        self, objective: Objective, evaluations: int, seed: int, *, warmup: int, reward_momentum: float, **settings: Any
    ):
        steps = objective.steps
        defaults: dict[str, Any] = dict(
            learning_rate=1e-3, buffer_size=MEMORY * steps, learning_starts=warmup * steps, batch_size=64, tau=0.01, gamma=1.0,
            train_freq=(1, "episode"), gradient_steps=steps, policy_kwargs=dict(net_arch=[300, 300]),
            replay_buffer_class=FinalRewards, replay_buffer_kwargs=dict(momentum=reward_momentum),
        )  # fmt: skip
        own = {"reward_scale": 1.0, "warmup": warmup, **defaults, **settings}
        super().__init__(TruncatedDDPG, objective, evaluations, seed, **own)
        self.timesteps = evaluations * steps

    @property
    def drives_several(self) -> bool:
        """Its replay buffer takes one episode after the other."""
        return False

    def build(self, env: gym.Env) -> None:
        """Make `model`, with `env` behind wrappers."""
        super().build(OneAction(env))

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play all episodes."""
        self.build(env)
        self.learn(self.timesteps)

    def policy(self) -> Policy:
        """The actor without noise."""
        return lambda observation: np.array([1.0, self.model.predict(observation, deterministic=True)[0][0]], np.float32)

    def deterministic(self) -> nn.Module:
        """The policy without chance, as `save_policy` takes it."""
        return BothActions(Deterministic(self.model.policy))
