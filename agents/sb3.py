"""Stable-Baselines3 on an environment with one reward, at the end. The only file that imports stable_baselines3 and sb3_contrib."""

from __future__ import annotations

import pickle
import random
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from compress_env.agents.dyna import Dyna
from compress_env.agents.policy_selection import PolicySelection, rehearses
from compress_env.agents.saved import load_policy, save_policy
from compress_env.errors import UserError
from compress_env.files import atomic

SAVE_EVERY = 20.0
"""Seconds between checkpoints; what lies after the last one is replayed from the recorded trials."""

COUNTERS = ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates")


class DecayingNoise(ActionNoise):
    """Gaussian noise that is silent while actions are drawn at random, then shrinks with each episode.

    Silent at first because Stable-Baselines3 adds noise to random actions too, which would press them against the bounds.
    """

    def __init__(self, size: int, start: float, end: float, warmup: int, episodes: int):
        super().__init__()
        self.size, self.start, self.warmup = size, start, warmup
        self.decay = (end / start) ** (1 / max(1, episodes - warmup))
        self.episode = 0

    def __call__(self) -> np.ndarray:
        if self.episode < self.warmup:
            return np.zeros(self.size, np.float32)
        scale = self.start * self.decay ** (self.episode - self.warmup)
        return np.random.normal(0, scale, self.size).astype(np.float32)

    def reset(self) -> None:
        """Called by Stable-Baselines3 when learning begins, the uniform student being done, and at the end of each episode."""
        self.episode += 1


class RelativeReward(gym.Wrapper):
    """Rewards relative to `baseline`, times `scale`: the critic starts near 0 and need not learn a large constant first.

    AMC subtracts a moving average for the same reason; a constant keeps what is in the replay buffer comparable.
    """

    def __init__(self, env: gym.Env, scale: float):
        super().__init__(env)
        self.scale, self.baseline = scale, 0.0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, self.scaled(reward) if terminated else reward, terminated, truncated, info

    def scaled(self, reward: float) -> float:
        """What the agent is given for this reward."""
        return self.scale * (reward - self.baseline)


class _Enough(Exception):
    """All episodes are played."""


class _Limit(gym.Wrapper):
    """Ends the search when all episodes are played; on-policy algorithms collect whole batches of them and would go on."""

    def __init__(self, env: gym.Env, episodes: int):
        super().__init__(env)
        self.episodes = episodes

    def reset(self, **kwargs):
        if self.env.get_wrapper_attr("played") >= self.episodes:
            raise _Enough
        return super().reset(**kwargs)


class StableBaselinesAgent:
    """An algorithm of Stable-Baselines3 or its contrib package, by class or name, on episodes whose end alone is rewarded.

    The first episode is the uniform student (action 0), to which rewards are then relative.
    reward_scale: of these. settings: the algorithm's own, over `defaults`. An interrupted search is replayed from its trials.
    """

    policy_class = "MlpPolicy"

    def __init__(
        self, algorithm: str | type[BaseAlgorithm], env: gym.Env, episodes: int, seed: int, *, reward_scale: float = 5.0,
        **settings: Any,
    ):  # fmt: skip
        self.env, self.episodes, self.seed = env, episodes, seed
        self.steps, self.timesteps = env.unwrapped.steps, (episodes - 1) * env.unwrapped.steps
        self.relative = RelativeReward(_Limit(env, episodes), reward_scale)
        make = _algorithm(algorithm) if isinstance(algorithm, str) else algorithm
        policy = settings.pop("policy", self.policy_class)
        self.settings = {"policy": policy, **settings}
        try:
            self.model = make(policy, self.relative, seed=seed, device="cpu", verbose=0, **deepcopy(settings))
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{make.__name__} does not take these settings: {error}") from error
        self.model.set_logger(Logger(None, []))  # otherwise each search leaves an empty folder among temporary files

    def play_uniform(self) -> None:
        """The first episode; its reward is what later ones are relative to."""
        self.env.reset(seed=self.seed)
        done = False
        while not done:
            _, self.relative.baseline, done, *_ = self.env.step(np.zeros(2, np.float32))

    def run(self, checkpoint: Path | None) -> None:
        """Play all episodes."""
        self.play_uniform()
        try:
            self.model.learn(self.timesteps)
        except _Enough:
            pass

    def policy(self):
        """The actor without noise."""
        return lambda observation: self.model.predict(observation, deterministic=True)[0]

    def save_policy(self, path: Path) -> None:
        """Write the actor for `load_policy`; a warning if it is of a kind that cannot be traced, since the search is done by then."""
        try:
            save_policy(self.model.policy, path)
        except Exception as error:  # noqa: BLE001 - a policy of the user's own may raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"the policy is not saved: {reason}; the trials are", stacklevel=2)


class OffPolicyAgent(StableBaselinesAgent):
    """An off-policy algorithm with AMC's schedule (He et al., ECCV 2018), most of whose episodes are imagined (`Dyna`).

    After the uniform student, random episodes follow, then learned ones with one update a transition after each. Returns reach
    over the whole episode (`n_steps`), since only its end is rewarded. With imagined episodes, the policy that is left is the one that
    the model of the reward trusts most of those on the way (`PolicySelection`). Where all are imagined (`SurrogateEnv`), none is added.

    imagined: episodes played against a model of the reward for each real one, 4 if not given; 0 plays real ones only.
    varied: variations of the best students that the model judges for each real one, 300 if not given.
    start: a file of a policy that was learned before, whose proposal is the second student; or None. Needs imagined episodes.
    warmup_share: share of the agent's episodes that are random; 0.02 with imagined ones, whose model learns most from students
    near the uniform one, else 0.2.
    noise: standard deviation of the exploration after that, first and last, in the unit of actions; None for algorithms that explore
    by themselves. actor_delay: updates of the critic for each of the actor; 4 with imagined episodes, else 30 (AMC's actor learns
    ten times slower, and Stable-Baselines3 has one learning rate; faster ones run into a corner before the critic knows anything).
    """

    def __init__(
        self,
        algorithm: str | type[BaseAlgorithm],
        env: gym.Env,
        episodes: int,
        seed: int,
        *,
        imagined: int | None = None,
        varied: int | None = None,
        start: str | None = None,
        warmup_share: float | None = None,
        noise: tuple[float, float] | None = (0.4, 0.1),
        actor_delay: int | None = None,
        **settings: Any,
    ):
        for name, value in (("imagined", imagined), ("varied", varied)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise UserError(f"{name} is a number of episodes, 0 or more; got {value!r}")
        steps = env.unwrapped.steps
        rehearsing = rehearses(env)
        if rehearsing and (imagined or varied or start):
            raise UserError("all episodes are imagined here; leave imagined, varied and start out")
        if imagined is None:
            imagined = 0 if rehearsing else 4
        if varied and not imagined:
            raise UserError("variations are judged between imagined episodes; leave imagined=0 out, or varied")
        varied = 300 if varied is None else varied
        if warmup_share is None:
            warmup_share = 0.02 if imagined or rehearsing else 0.2
        if start and not imagined:
            raise UserError(
                "start needs imagined episodes, in which students like its proposal are tried; leave imagined=0 out"
            )
        self.start = load_policy(start) if start else None
        given = 2 if start else 1  # the uniform student, and the proposal
        played = stored = episodes
        self.imagination: Dyna | None = None
        if imagined:
            env = self.imagination = Dyna(env, given, imagined, varied, seed)
            rounds = max(0, episodes - given)
            played, stored = (given + n * rounds for n in (imagined, imagined + self.imagination.lessons_a_round))
        warmup = max(1, round(warmup_share * (played - given)))
        decaying = DecayingNoise(2, *noise, warmup + 1, played) if noise else None
        defaults = dict(
            learning_rate=1e-3,
            buffer_size=(stored + 1) * steps,
            learning_starts=warmup * steps,
            batch_size=64,
            gamma=1.0,
            train_freq=(1, "episode"),
            gradient_steps=steps,
            n_steps=steps,
            policy_kwargs=dict(net_arch=[128, 128]),
        )
        super().__init__(algorithm, env, episodes, seed, **{"action_noise": decaying, **defaults, **settings})
        judge = env.unwrapped if rehearsing else self.imagination
        self.trusted = PolicySelection(judge) if judge else None
        self.timesteps = played * steps
        self.model: OffPolicyAlgorithm
        self.noise: DecayingNoise | None = self.model.action_noise
        if isinstance(self.model, stable_baselines3.TD3):  # DDPG is one too
            self.model.policy_delay = (4 if judge else 30) if actor_delay is None else actor_delay
            self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Let the untrained policy give actions near 0, the uniform student at the budget."""
        actor = self.model.actor
        last = [m for m in actor.mu if isinstance(m, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(0.01)
            last.bias.zero_()
        self.model.actor_target.load_state_dict(actor.state_dict())

    def run(self, checkpoint: Path | None) -> None:
        """Play the episodes that are left; the state is saved at the end of roll-outs, when their reward is stored."""
        done = self._restore(checkpoint) if checkpoint and checkpoint.exists() else 0
        begin = not done
        if begin:
            self.play_uniform()
            done = 1
            if self.start and done < self.episodes:
                self._play_start()
                done = 2
        if done < self.episodes:
            try:
                self.model.learn(
                    self.timesteps,
                    callback=_BetweenEpisodes(self, checkpoint),
                    reset_num_timesteps=begin,
                )
            except _Enough:
                pass
            if checkpoint:
                self.save(checkpoint)
        if self.trusted:
            self.trusted.give(self.model.actor)

    def _play_start(self) -> None:
        """The student of the policy that the search goes on from; the agent learns from it like from an episode of its own."""
        observation, _ = self.env.reset()
        done = False
        while not done:
            observation, _, done, _, _ = self.env.step(self.start(observation))
        self.imagination.lessons.append(self.imagination.students[-1])

    def save(self, path: Path) -> None:
        """Write networks, optimisers, replay buffer and every random state in one file, whole or not at all."""
        state = {
            "episodes": self.env.get_wrapper_attr("played"),
            "baseline": self.relative.baseline,
            "parameters": self.model.get_parameters(),
            "counters": {name: getattr(self.model, name) for name in COUNTERS},
            "buffer": self.model.replay_buffer,
            "noise_episode": self.noise.episode if self.noise else 0,
            "imagination": self.imagination.state() if self.imagination else None,
            "actors": self.trusted.actors if self.trusted else [],
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "env": self.env.unwrapped.np_random,
            "actions": self.model.action_space.np_random,
        }
        with atomic(path) as part:
            part.write_bytes(pickle.dumps(state))

    def _restore(self, path: Path) -> int:
        """Take up the state of `save` and return the number of episodes done. Pickled: only for files of one's own runs."""
        state = pickle.loads(path.read_bytes())
        other = state["episodes"] > len(self.env.get_wrapper_attr("trials"))
        if other or bool(state.get("imagination")) != bool(self.imagination):
            return 0  # of another run, or version; start over, recorded trials are replayed
        self.relative.baseline = state["baseline"]
        self.model.set_parameters(state["parameters"], device="cpu")
        for name, value in state["counters"].items():
            setattr(self.model, name, value)
        self.model.replay_buffer = state["buffer"]
        left = state["episodes"] < self.episodes
        if self.noise:
            self.noise.episode = state["noise_episode"] - left  # learn() begins with a reset
        self.env.get_wrapper_attr("skip")(state["episodes"])
        if self.imagination:
            self.imagination.load(state["imagination"])
            self.trusted.actors = state.get("actors", [])
        if left:
            self.model._last_obs = self.model.env.reset()
        self.env.unwrapped.np_random = state["env"]
        self.model.action_space._np_random = state["actions"]
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        return state["episodes"]


class _BetweenEpisodes(BaseCallback):
    """Adds what was imagined to the replay buffer; looks at the actor once a round, and saves, after the updates of a roll-out, when
    the next one begins."""

    def __init__(self, agent: OffPolicyAgent, path: Path | None):
        super().__init__()
        self.agent, self.path, self.saved = agent, path, time.monotonic()

    def _on_rollout_end(self) -> None:
        if self.agent.imagination:
            scaled = self.agent.relative.scaled
            for before, after, action, reward, done in self.agent.imagination.transitions():
                reward = np.array([scaled(reward) if done else 0.0])
                self.model.replay_buffer.add(before[None], after[None], action[None], reward, np.array([done]), [{}])

    def _on_rollout_start(self) -> None:
        if self.agent.trusted and self.agent.trusted.judge.begins_a_round:
            self.agent.trusted.look(self.model.actor, self.agent.policy())
        if self.path and self.agent.env.get_wrapper_attr("played") and time.monotonic() - self.saved > SAVE_EVERY:
            self.agent.save(self.path)
            self.saved = time.monotonic()

    def _on_step(self) -> bool:
        return True


def _algorithm(name: str) -> type[BaseAlgorithm]:
    return getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)


def of_class(algorithm: type[BaseAlgorithm]):
    """The factory of an agent from a user's or a library's class, with what it needs for episodes rewarded at the end."""
    kind = OffPolicyAgent if issubclass(algorithm, OffPolicyAlgorithm) else StableBaselinesAgent

    def factory(env, episodes: int, seed: int, **settings):
        return kind(algorithm, env, episodes, seed, **settings)

    return factory
