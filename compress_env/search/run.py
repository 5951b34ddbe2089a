"""`search`: an agent on an environment for a number of evaluations, every one recorded."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from compress_env.contexts import one_thread, own_random_state
from compress_env.errors import UnknownName, UserError
from compress_env.registry import load_attribute, unknown
from compress_env.rewards import Outcome
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.trial import Trial, best_trial
from compress_env.surgery.plan import Plan

NAMES = (
    "ddpg", "td3", "sac", "tqc", "crossq", "ppo", "a2c", "ars", "n2n",
    "policy", "random", "uniform", "greedy", "evolution", "cma-es", "tpe",
)  # fmt: skip
AGENTS = {name: "compress_env.agents.{0}:{0}".format(name.replace("-", "_")) for name in NAMES}
"""Where the agents are, those that learn first; strings, so that a search with one does not load the others."""

Policy = Callable[[np.ndarray], np.ndarray]


class Agent(Protocol):
    """Drives an environment for a number of episodes. A factory function `(env, episodes, seed)` makes one."""

    def run(self, checkpoint: Path | None) -> None:
        """Play the episodes, going on from `checkpoint` if that file exists."""

    def policy(self) -> Policy | None:
        """What was learned, as a deterministic function of the observation, or None for a search without a policy.

        An agent may also have `save_policy(path)`, which writes it for others to use; it is called when the search is over.
        """


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Best-found and final policy are different things, and the first is usually better.

    final_policy: the trial that the learned policy gives without noise, None for agents without one.
    interrupted: whether it was stopped by Ctrl-C before all evaluations were done.
    """

    trials: list[Trial]
    best: Trial | None
    final_policy: Trial | None
    seconds: float
    interrupted: bool = False


class Recorder(gym.Wrapper):
    """Turns finished episodes into trials. Those that a resumed run had recorded are checked, not written again."""

    def __init__(self, env: gym.Env, evaluations: int, seed: int, folder: RunFolder | None, bar: tqdm):
        super().__init__(env)
        self.evaluations, self._seed, self._folder, self._bar = evaluations, seed, folder, bar
        self.trials: list[Trial] = folder.trials() if folder else []
        self.played = 0
        self._start = time.perf_counter()
        for trial in self.trials:
            env.unwrapped.remember(trial.plan, trial.outcome)

    def skip(self, episodes: int) -> None:
        """Go on after this many recorded trials, as an agent does that restores a checkpoint."""
        self.played = episodes
        self._bar.update(episodes - self._bar.n)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            self._record(reward, info)
        return observation, reward, terminated, truncated, info

    def _record(self, reward: float, info: dict[str, Any]) -> None:
        now = time.perf_counter()
        trial = make_trial(self.played, self._seed, reward, info, self.env.unwrapped, now - self._start)
        self._start = now
        if self.played < len(self.trials):
            before = self.trials[self.played]
            if before.plan != trial.plan:
                raise UserError(
                    f"trial {self.played} of {self._folder.path} cannot be reproduced: it was {before.plan.to_json()}, now "
                    f"{trial.plan.to_json()}. Recorded with {before.versions}; search again in another folder"
                )
        else:
            self.trials.append(trial)
            if self._folder:
                self._folder.append(trial)
        self.played += 1
        best = best_trial(self.trials[: self.played])
        self._bar.update()
        if best:
            self._bar.set_postfix_str(f"best accuracy {best.outcome.accuracy:.4f}")


def make_trial(index: int, seed: int, reward: float, info: dict[str, Any], env, seconds: float) -> Trial:
    """The trial of a finished episode."""
    outcome = Outcome(
        info["accuracy"],
        info["teacher_accuracy"],
        info["usage"],
        dict(env.cost_model.teacher),
        info["budget"],
        info["failed"],
        info["likeness"],
    )
    plan = Plan.from_json(info["plan"])
    return Trial(index, plan, outcome, float(reward), info["reward_terms"], info["repeated"], seed, round(seconds, 3))


def search(
    env: gym.Env,
    agent: str | Callable[[gym.Env, int, int], Agent] = "ddpg",
    evaluations: int = 150,
    seed: int = 0,
    out: RunFolder | str | Path | None = None,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Let `agent` (a name, `module:factory`, a factory, or a class of Stable-Baselines3) play `evaluations` episodes on `env`.

    Each is a trial, appended to `out` at once; a plan is never evaluated twice, but proposing it again counts. If `out` has
    trials, the search goes on after them, to the same trials as without interruption. Ctrl-C ends it with what there is.
    The same seed gives the same trials on the same machine, except where latency is measured.
    settings: arguments of the agent's own. Raises UserError for those that it does not take.
    """
    if evaluations < 1:
        raise UserError(f"evaluations must be at least 1, got {evaluations}")
    factory = find_agent(agent, settings)
    folder = out if isinstance(out, RunFolder) or out is None else RunFolder(out)
    if folder:
        folder.path.mkdir(parents=True, exist_ok=True)
    start, interrupted, final = time.perf_counter(), False, None
    label = agent if isinstance(agent, str) else getattr(agent, "__name__", "search")
    with (
        alone_in(folder.path) if folder else nullcontext(),
        tqdm(total=evaluations, desc=label, unit="student", disable=not progress) as bar,
    ):
        if folder:
            folder.repair()
        recorder = Recorder(env, evaluations, seed, folder, bar)
        with own_random_state(), one_thread():
            try:
                player = factory(recorder, evaluations, seed, **(settings or {}))
                player.run(folder.path / "agent.checkpoint" if folder else None)
                final = _final(player.policy(), env, seed)
                if folder and hasattr(player, "save_policy"):
                    player.save_policy(folder.path / "policy.onnx")
            except KeyboardInterrupt:
                interrupted = True
    return SearchResult(recorder.trials, best_trial(recorder.trials), final, time.perf_counter() - start, interrupted)


def find_agent(agent: str | Callable[..., Agent], settings: Mapping[str, Any] | None = None) -> Callable[..., Agent]:
    """The factory of an agent by name or `module:attribute`, or of a class with Stable-Baselines3's interface.

    Raises UnknownName, and UserError if the factory does not take the settings.
    """
    if isinstance(agent, str) and agent not in AGENTS and ":" not in agent:
        raise UnknownName(unknown("agent", agent, sorted(AGENTS)))
    factory = load_attribute(AGENTS.get(agent, agent), "agent") if isinstance(agent, str) else agent
    if isinstance(factory, type) and hasattr(factory, "learn"):
        factory = load_attribute("compress_env.agents.sb3:of_class", "agent")(factory)
    try:
        inspect.signature(factory).bind(None, 1, 0, **(settings or {}))
    except TypeError as error:
        raise UserError(f"the agent {agent!r} cannot be made with these settings: {error}") from None
    return factory


def _final(policy: Policy | None, env: gym.Env, seed: int) -> Trial | None:
    """The student that the learned policy proposes without exploration."""
    if policy is None:
        return None
    start = time.perf_counter()
    observation, _ = env.reset(seed=seed)
    done = False
    while not done:
        observation, reward, done, _, info = env.step(policy(observation))
    return make_trial(-1, seed, reward, info, env.unwrapped, time.perf_counter() - start)
