"""Several environments that are driven beside each other, so that their students are judged at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from compress_env.agents.sb3.noise import DecayingNoise
from compress_env.agents.sb3.wrappers import Enough, RelativeReward
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.search.together import Together


class SideBySide(VecEnv):
    """Environments on one objective in lockstep: episodes have the same number of steps, and at the last the students are judged.

    Decisions are taken in this process. The last round may have fewer students than there are environments: the first ones count.
    It ends the search, which learns no more, as with one environment.

    Args:
        env: A `RelativeReward` around the first environment; it scales the rewards of all.
        together: Judges and records the students.
        evaluations: How many students the search is to judge.

    Attributes:
        envs: The environments.
    """

    def __init__(self, env: RelativeReward, together: Together, evaluations: int):
        self.relative, self.together, self.evaluations = env, together, evaluations
        self.envs: list[LayerRemovalEnv] = [env.get_wrapper_attr("environment")]
        self.envs += [LayerRemovalEnv.of(self.envs[0].objective) for _ in range(together.places - 1)]
        super().__init__(together.places, env.observation_space, env.action_space)
        self._actions = np.zeros((self.num_envs, 2), np.float32)
        self._at = 0

    def reset(self) -> np.ndarray:
        """Begin an episode in each; observations `(places, entries)`."""
        self._at = 0
        given = zip(self.envs, self._seeds, self._options, strict=True)
        found = [env.reset(seed=seed, options=options)[0] for env, seed, options in given]
        self._reset_seeds()
        self._reset_options()
        return np.stack(found)

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions `(places, 2)`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """A step in each. Raises Enough after the last round."""
        steps = [env.decide(action) for env, action in zip(self.envs, self._actions, strict=True)]
        if steps[0] is None:
            judged = self.together.judge([env.walk for env in self.envs if env.walk])
            if self.relative.get_wrapper_attr("played") >= self.evaluations:
                raise Enough
            steps = [env.end(each) for env, each in zip(self.envs, judged, strict=True)]
        at, found, rewards, ends, infos = self._at, [], [], [], []
        for step in steps:
            assert step is not None  # they are in lockstep
            observation, reward, terminated, _, info = step
            found.append(observation)
            rewards.append(self.relative.scaled(reward, at))
            ends.append(terminated)
            infos.append(info | {"TimeLimit.truncated": False} | ({"terminal_observation": observation} if terminated else {}))
        self._at += 1
        after = self.reset() if ends[0] else np.stack(found)
        return after, np.array(rewards, np.float32), np.array(ends), infos

    def close(self) -> None:
        """Nothing to end."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each environment."""
        return [getattr(env, attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each environment."""
        for env in self._chosen(indices):
            setattr(env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **keywords: Any) -> list[Any]:
        """Call a method of each environment."""
        return [getattr(env, method_name)(*args, **keywords) for env in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """They are as they are."""
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: int | Iterable[int] | None) -> list[LayerRemovalEnv]:
        return [self.envs[i] for i in self._get_indices(indices)]


def settings_for(algorithm: type[BaseAlgorithm], settings: dict[str, Any], steps: int, places: int) -> dict[str, Any]:
    """Settings of an algorithm with so many environments: roll-outs of on-policy ones are together as long as with one.

    Where they are whole episodes with one, they are with several, of at least an episode each.

    Args:
        algorithm: The class.
        settings: Its settings with one environment.
        steps: Of an episode.
        places: Environments.
    """
    default = inspect.signature(algorithm).parameters.get("n_steps")
    if not issubclass(algorithm, OnPolicyAlgorithm) or default is None:
        return settings
    whole = settings.get("n_steps", default.default)
    share = math.ceil(whole / places)
    if whole % steps:
        return settings | {"n_steps": share}
    share = math.ceil(share / steps) * steps
    if "batch_size" not in settings:
        return settings | {"n_steps": share}
    rollout = share * places
    most = max(1, rollout // settings["batch_size"])
    batches = max(n for n in range(1, most + 1) if rollout % n == 0)
    return settings | {"n_steps": share, "batch_size": rollout // batches}


def fit(model: BaseAlgorithm, steps: int, places: int) -> None:
    """Have an off-policy model learn as much from each student as with one environment: after whole rounds, if after episodes.

    Random actions and noise likewise change between rounds.

    Args:
        model: Has been made for one environment.
        steps: Of an episode.
        places: Environments.
    """
    if places == 1 or not isinstance(model, OffPolicyAlgorithm):
        return
    every, factor = model.train_freq, float(places)
    assert isinstance(every, TrainFreq)
    if every.unit == TrainFrequencyUnit.EPISODE:
        rounds = math.ceil(every.frequency / places)
        factor = rounds * places / every.frequency
        model.train_freq = TrainFreq(rounds * steps, TrainFrequencyUnit.STEP)
    if model.gradient_steps > 0:  # a negative number means one a transition
        model.gradient_steps = round(model.gradient_steps * factor)
    episodes, rest = divmod(model.learning_starts, steps)
    random = math.ceil(episodes / places) * places
    if episodes and not rest:
        model.learning_starts = random * steps - 1  # so that it learns after the last random round
    if isinstance(noise := model.action_noise, DecayingNoise):
        model.action_noise = several = VectorizedActionNoise(noise, places)
        several.noises[:] = [noise.share(place, places, random + 1) for place in range(places)]
