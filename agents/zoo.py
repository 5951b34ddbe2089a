"""Settings of the learning agents as presets of rl-zoo3: `python -m compress_env.agents.zoo --out agents/presets`.

A preset holds what rl-zoo3 can say. It cannot say some things that a search with the agent has: rewards relative to those of the
action 0, noise that decays (its geometric mean is in the preset), for DDPG an actor that learns more slowly than the critic, and an
actor that starts at the action 0.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import gymnasium as gym

from compress_env.agents.sb3 import StableBaselinesAgent
from compress_env.agents.sb3.wrappers import RelativeReward
from compress_env.objective import Objective
from compress_env.search.run import find_agent
from compress_env.spec import ProblemSpec, SearchSpec

NAMES = ("ddpg", "td3", "sac", "tqc", "crossq", "ppo", "a2c", "ars")
"""Agents that are algorithms of Stable-Baselines3 or its contrib package, by the names that rl-zoo3 gives them, too."""
IDS = ("LayerRemoval-v0", "LayerRemovalPlanted-v0")
EPISODES = SearchSpec().evaluations
TEACHER, DATA = (f for f in fields(ProblemSpec) if f.name in ("teacher", "data"))


def built(name: str, env: gym.Env, evaluations: int) -> StableBaselinesAgent:
    """An agent on `env`; it has been built, and not played.

    Args:
        name: One of `NAMES`.
        env: A `LayerRemoval-v0`.
        evaluations: How many students its search is to judge.
    """
    objective: Objective = env.get_wrapper_attr("objective")
    agent = find_agent(name)(objective, evaluations, 0)
    assert isinstance(agent, StableBaselinesAgent)
    agent.build(env)
    return agent


def settings(name: str, env: gym.Env, evaluations: int) -> dict[str, Any]:
    """The hyperparameters of an agent, by the names that rl-zoo3 takes; the arguments are those of `built`."""
    agent = built(name, env, evaluations)
    wrapper = {f"{RelativeReward.__module__}.{RelativeReward.__name__}": {"scale": agent.reward_scale}}
    found = {"n_timesteps": evaluations * agent.steps, "env_wrapper": [wrapper], **agent.settings}
    noise = found.pop("action_noise", None)
    if noise:
        middle = noise.start * noise.decay ** ((evaluations - noise.warmup) / 2)
        found |= {"noise_type": "normal", "noise_std": round(middle, 6)}
    delay = inspect.signature(type(agent.model)).parameters.get("policy_delay")  # set after the algorithm was made
    if delay and (used := getattr(agent.model, delay.name)) != delay.default:
        found[delay.name] = used
    return found


def preset(name: str, env: gym.Env, evaluations: int) -> str:
    """The text of a YAML file; values are JSON, which is YAML too. The arguments are those of `built`."""
    steps = env.get_wrapper_attr("objective").steps
    lines = [
        f"# {name} for teachers of {steps} steps an episode and {evaluations} episodes; for others, and what is not in here:",
        "# python -m compress_env.agents.zoo --help",
        f"{IDS[0]}: &settings",
        *(f"  {key}: {json.dumps(value)}" for key, value in settings(name, env, evaluations).items()),
        *(f"{other}: *settings" for other in IDS[1:]),
    ]
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--teacher", default=TEACHER.default, show_default=True, help=TEACHER.metadata["help"])
@click.option("--data", help=DATA.metadata["help"])
@click.option("--episodes", type=click.IntRange(2), default=EPISODES, show_default=True, help="Students of a search.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the files.")
def main(teacher: str, data: str | None, episodes: int, out: Path) -> None:
    """The command; its help is that of the module."""
    env = gym.make(IDS[0], teacher=teacher, data=data)
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (out / f"{name}.yml").write_text(preset(name, env, episodes))
        click.echo(out / f"{name}.yml")


if __name__ == "__main__":
    main()
