"""Checkpoints of off-policy agents: networks, optimisers, replay buffer, surrogate model and every random state in one file."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.gaussian_process import kernels

from compress_env.agents.model import Candidate, Student
from compress_env.agents.policy_selection import PolicyCandidate
from compress_env.agents.sb3.replay import packed, unpack
from compress_env.agents.surrogate import Surrogate
from compress_env.contexts import quiet
from compress_env.files import atomic
from compress_env.surgery.plan import Plan

if TYPE_CHECKING:
    from compress_env.agents.sb3.off_policy import OffPolicyAgent

COUNTERS = ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates")
"""Of a model of Stable-Baselines3."""
PARTS: list[Any] = [
    Surrogate, Student, Candidate, PolicyCandidate, Plan,
    kernels.Sum, kernels.Product, kernels.ConstantKernel, kernels.Matern, kernels.WhiteKernel,
    np.ndarray, np.dtype, *(value.__reduce__()[0] for value in (np.zeros(0), np.float64(0))),
    *(type(np.dtype(kind)) for kind in ("bool", "float32", "float64", "int64", "uint32", "uint64")),
]  # fmt: skip
"""Everything but tensors and plain values that a checkpoint may consist of; `torch.load` runs and makes nothing else."""


def save(agent: OffPolicyAgent, path: Path, over: bool = False) -> None:
    """Write the state of an agent between two episodes, whole or not at all.

    Args:
        agent: Has played.
        path: The file.
        over: Whether it has played its last episode, whose end it has not learned from.
    """
    model, env = agent.model, agent.env
    assert model.replay_buffer is not None
    state = {
        "episodes": env.get_wrapper_attr("played"),
        "over": over,
        "baseline": agent.relative.baseline,
        "parameters": model.get_parameters(),
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "replay": packed(model.replay_buffer),
        "noise_episodes": [noise.episode for noise in agent.noises],
        "dyna": agent.dyna.state() if agent.dyna else None,
        "candidates": agent.selection.candidates if agent.selection else [],
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "envs": [each.np_random.bit_generator.state for each in environments(agent)],
        "limits": [each.walk.limits for each in environments(agent)],
        "actions": model.action_space.np_random.bit_generator.state,
    }
    with atomic(path) as part:
        torch.save(state, part)


def environments(agent: OffPolicyAgent) -> list[Any]:
    """The environments that it drives."""
    return list(agent.several.envs) if agent.several else [agent.env.get_wrapper_attr("environment")]


def restore(agent: OffPolicyAgent, path: Path) -> int:
    """Take up the state of `save`; no code of the file's is run.

    Args:
        agent: Has been built, and not played.
        path: The file.

    Returns:
        The number of episodes done; 0 if the file is damaged, of another run, or has other parts, or if the search was over and has
        more evaluations now. Recorded trials are then played again.
    """
    try:
        with quiet(), torch.serialization.safe_globals(PARTS):
            state = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):
        return 0
    model, env = agent.model, agent.env
    other = state["episodes"] > len(env.get_wrapper_attr("trials")) or len(state["envs"]) != len(environments(agent))
    left = state["episodes"] < agent.evaluations
    if other or state.get("over") and left or bool(state.get("dyna")) != bool(agent.dyna):
        return 0
    agent.relative.baseline = state["baseline"]
    model.set_parameters(state["parameters"], device="cpu")
    for name, value in state["counters"].items():
        setattr(model, name, value)
    assert model.replay_buffer is not None
    unpack(model.replay_buffer, state["replay"])
    for noise, episode in zip(agent.noises, state["noise_episodes"], strict=True):
        noise.episode = episode - left * noise.stride  # learn() begins with a reset
    env.get_wrapper_attr("skip")(state["episodes"])
    if agent.dyna:
        agent.dyna.load(state["dyna"])
    if agent.selection:
        agent.selection.candidates = state["candidates"]
    if left and model.env:
        if not agent.dyna:  # which has its own
            model.env.set_options([{"limits": limits} for limits in state["limits"]])
        model._last_obs = model.env.reset()  # type: ignore[assignment]
    for each, rng in zip(environments(agent), state["envs"], strict=True):
        each.np_random.bit_generator.state = rng
    model.action_space.np_random.bit_generator.state = state["actions"]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    return state["episodes"]
