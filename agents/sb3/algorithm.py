"""An algorithm of Stable-Baselines3 as an agent of a search."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

from compress_env.agents.saved import save_policy
from compress_env.agents.sb3.scalars import NewScalars
from compress_env.agents.sb3.vector import SideBySide, fit, settings_for
from compress_env.agents.sb3.wrappers import Enough, Limit, RelativeReward
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.search.agent import DrivingAgent, Policy


class Deterministic(nn.Module):
    """A policy of Stable-Baselines3 without chance, within the bounds of actions, as `save_policy` takes it.

    Args:
        policy: Of a model; it is in evaluation mode from now on.
    """

    def __init__(self, policy: Any):
        super().__init__()
        policy.set_training_mode(False)
        self.policy = policy

    def forward(self, observation: Tensor) -> Tensor:
        """Actions `(n, actions)` for observations `(n, entries)`."""
        return self.policy._predict(observation, deterministic=True).clamp(-1, 1)


class StableBaselinesAgent(DrivingAgent):
    """An algorithm of Stable-Baselines3 or its contrib package, with its own settings unless others are given.

    The first episode is that of the action 0, to which rewards are then relative. An interrupted search is played again
    from its trials.

    Args:
        algorithm: A class, or its name.
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of everything random.
        reward_scale: Of rewards relative to those of the action 0.
        settings: The algorithm's own.
    """

    def __init__(
        self, algorithm: str | type[BaseAlgorithm], objective: Objective, evaluations: int, seed: int, *, reward_scale: float = 5.0,
        **settings: Any,
    ):  # fmt: skip
        self.objective, self.evaluations, self.seed = objective, evaluations, seed
        self.algorithm = _algorithm(algorithm) if isinstance(algorithm, str) else algorithm
        if not isinstance(reward_scale, (int, float)) or not 0 < reward_scale < math.inf:
            raise UserError(f"reward_scale has to be a positive number, got {reward_scale!r}")
        self.reward_scale, self.settings = reward_scale, {"policy": "MlpPolicy", **settings}
        self.steps = objective.steps
        self.timesteps, self.episodes_each = (evaluations - 1) * self.steps, 1
        self.model: BaseAlgorithm
        self.events: Path | None = None

    @property
    def drives_several(self) -> bool:
        """Whether it can drive several environments beside each other."""
        return issubclass(self.algorithm, (OffPolicyAlgorithm, OnPolicyAlgorithm))

    def go_on(self, evaluations: int) -> None:
        """Another number of students; the last values of schedules hold on."""
        self.timesteps += (evaluations - self.evaluations) * self.episodes_each * self.steps
        self.evaluations = evaluations

    def build(self, env: gym.Env) -> None:
        """Make `model`, with `env` behind wrappers.

        Args:
            env: A `RecordingEnv`, or one that has `played`, too. If it is to be driven beside others, they are made.

        Raises:
            UserError: If the algorithm does not take the settings.
        """
        self.env = env
        self.relative = RelativeReward(Limit(env, self.evaluations), self.reward_scale)
        together = env.get_wrapper_attr("together") if env.has_wrapper_attr("together") else None
        self.several = SideBySide(self.relative, together, self.evaluations) if together else None
        places, own = together.places if together else 1, deepcopy(self.settings)
        try:
            own = settings_for(self.algorithm, own, self.steps, places) if places > 1 else own
            where = VecMonitor(self.several) if self.several else self.relative
            self.model = self.algorithm(env=where, seed=self.seed, device="cpu", verbose=0, **own)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{self.algorithm.__name__} does not take these settings: {error}") from error
        fit(self.model, self.steps, places)
        self.model.set_logger(self._logger())

    def write_scalars(self, folder: Path) -> None:
        """Write the algorithm's own scalars, into a folder of its name."""
        self.events = folder / self.algorithm.__name__

    def _logger(self) -> Logger:
        """For TensorBoard if that was asked for; else silent, where Stable-Baselines3 would leave an empty folder."""
        place, outputs = self.settings.get("tensorboard_log"), []
        if place:
            outputs += configure_logger(0, str(place), self.algorithm.__name__).output_formats
        if self.events:
            outputs.append(NewScalars(self.events))
        return Logger(None, outputs)

    def learn(self, timesteps: int, **arguments: Any) -> None:
        """Let the model learn until all episodes are played, and write what was logged."""
        whole = self.steps * (self.several.num_envs if self.several else 1)  # a round is not left in the middle
        try:
            self.model.learn(math.ceil(timesteps / whole) * whole, **arguments)
        except Enough:
            pass
        finally:
            if self.model.logger.output_formats:
                self.model.logger.dump(self.model.num_timesteps)
                self.model.logger.close()

    def play_zero(self) -> None:
        """The first episode; its rewards are what later ones are relative to."""
        self.env.reset(seed=self.seed)
        done, rewards = False, []
        while not done:
            _, reward, done, *_ = self.env.step(np.zeros(2, np.float32))
            rewards.append(float(reward))
        self.relative.baseline = rewards

    def drive(self, env: gym.Env, checkpoint: Path | None) -> None:
        """Play all episodes."""
        self.build(env)
        self.play_zero()
        self.learn(self.timesteps)

    def policy(self) -> Policy:
        """The actor without noise."""
        return lambda observation: self.model.predict(observation, deterministic=True)[0]

    def deterministic(self) -> nn.Module:
        """The policy without chance, as `save_policy` takes it."""
        return Deterministic(self.model.policy)

    def save_policy(self, path: Path) -> None:
        """Write the actor for `load_policy`. Raises UserError if it cannot be traced, or there is no place for it."""
        objective = self.objective
        try:
            save_policy(self.deterministic(), objective.embedding.names, objective.actions, path)
        except (UserError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a policy of the user's own may raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"this policy cannot be written as ONNX: {reason}") from error


def start_at_zero(model: BaseAlgorithm) -> None:
    """Let the untrained actor of a DDPG or TD3 give actions near 0."""
    actor: Any = model.actor  # type: ignore[attr-defined]
    last = [m for m in actor.mu if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.zero_()
    model.actor_target.load_state_dict(actor.state_dict())  # type: ignore[attr-defined]


def _algorithm(name: str) -> type[BaseAlgorithm]:
    return getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
