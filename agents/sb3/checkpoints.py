"""Checkpoints of off-policy agents: networks, optimisers, replay buffer, surrogate model and every random state in one file."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from compress_env.files import atomic

if TYPE_CHECKING:
    from compress_env.agents.sb3.off_policy import OffPolicyAgent

COUNTERS = ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates")
"""Of a model of Stable-Baselines3."""


def save(agent: OffPolicyAgent, path: Path) -> None:
    """Write the state of an agent between two episodes, whole or not at all."""
    model, env = agent.model, agent.env
    state = {
        "episodes": env.get_wrapper_attr("played"),
        "baseline": agent.relative.baseline,
        "parameters": model.get_parameters(),
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "buffer": model.replay_buffer,
        "noise_episode": agent.noise.episode if agent.noise else 0,
        "dyna": agent.dyna.state() if agent.dyna else None,
        "candidates": agent.selection.candidates if agent.selection else [],
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "env": env.np_random,
        "actions": model.action_space.np_random,
    }
    with atomic(path) as part:
        part.write_bytes(pickle.dumps(state))


def restore(agent: OffPolicyAgent, path: Path) -> int:
    """Take up the state of `save`. Pickled: only for files of one's own runs.

    Args:
        agent: Has been built, and not played.
        path: The file.

    Returns:
        The number of episodes done; 0 if the file is of another run, whose recorded trials are then played again.
    """
    state = pickle.loads(path.read_bytes())
    model, env = agent.model, agent.env
    other = state["episodes"] > len(env.get_wrapper_attr("trials"))
    if other or bool(state.get("dyna")) != bool(agent.dyna):
        return 0
    agent.relative.baseline = state["baseline"]
    model.set_parameters(state["parameters"], device="cpu")
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model.replay_buffer = state["buffer"]
    left = state["episodes"] < agent.evaluations
    if agent.noise:
        agent.noise.episode = state["noise_episode"] - left  # learn() begins with a reset
    env.get_wrapper_attr("skip")(state["episodes"])
    if agent.dyna:
        agent.dyna.load(state["dyna"])
    if agent.selection:
        agent.selection.candidates = state["candidates"]
    if left and model.env:
        model._last_obs = model.env.reset()  # type: ignore[assignment]
    env.np_random = state["env"]
    model.action_space._np_random = state["actions"]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    return state["episodes"]
