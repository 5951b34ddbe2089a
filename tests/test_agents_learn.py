"""Every agent learns: on a planted environment, its last students are better than random search's, by a threshold with margin."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from allocations import QUICK
from torch import nn

from compress_env.envs.planted import LayerRemovalPlantedEnv
from compress_env.objective import Objective
from compress_env.search import search
from compress_env.search.run import AGENTS
from compress_env.spec import EnvironmentSpec
from compress_env.walk.observation import entries

CASES: dict[str, tuple[dict[str, Any], int, tuple[int, ...], float]] = {
    "greedy": ({}, 60, (0, 1, 2), 0.82),
    "evolution": ({}, 60, (0, 1, 2), 0.80),
    "cma-es": ({}, 60, (0, 1, 2), 0.78),
    "tpe": ({}, 60, (0, 1, 2), 0.82),
    "model": ({}, 25, (0,), 0.8),
    "dyna-ddpg": ({}, 25, (0,), 0.8),
    "reinforce": ({"lr": 1e-2}, 240, (0, 1), 0.70),
    "ppo": ({}, 250, (1,), 0.72),
    "a2c": ({}, 400, (1,), 0.71),
    "ars": ({}, 300, (0,), 0.74),
    "ddpg": ({}, 60, (1,), 0.79),
    "amc": ({}, 60, (0,), 0.76),
    "sac": ({}, 30, (1,), 0.8),
    "crossq": ({}, 30, (0,), 0.82),
}
"""Settings, evaluations, seeds, and the reward that the mean of the last fifth of them has to pass."""
ALIKE = {"dyna-td3", "dyna-sac", "td3", "tqc"}
"""The first two find students as dyna-ddpg does, by the model and mutations; td3 and tqc learn as ddpg and sac do."""
FRUITLESS = {"random", "uniform", "policy", "allocation", "stages"}


@cache
def first() -> Objective:
    return LayerRemovalPlantedEnv.make_objective(False)


def rewards(agent: str, settings: dict[str, Any], evaluations: int, seed: int) -> list[float]:
    own = Objective(first().spec, problem=first().problem, evaluator=first().evaluator.anew(), sensitivities=first().sensitivities)
    return [t.reward for t in search(own, agent, evaluations, seed, progress=False, settings=settings).trials]


@cache
def random_search() -> float:
    """Mean reward of random students, of which the last are no better than the first."""
    return float(np.mean(rewards("random", {}, 200, 0)))


def test_no_agent_is_left_out():
    assert set(CASES) | ALIKE | FRUITLESS == set(AGENTS)


@pytest.mark.parametrize("agent", CASES)
def test_an_agent_learns_what_random_search_does_not(agent):
    settings, evaluations, seeds, threshold = CASES[agent]
    assert random_search() < threshold - 0.02
    last_fifth = [np.mean(rewards(agent, settings, evaluations, seed)[-(evaluations // 5) :]) for seed in seeds]
    assert np.mean(last_fifth) > threshold


@pytest.fixture(scope="module")
def seen():
    """Names of the entries, and all observations `(n, entries)` of random walks over three teachers within random budgets."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    rng, found = np.random.default_rng(0), []
    budget = {name: ["30%", "90%"] for name in ("macs", "memory", "params")}
    for teacher in ("resnet8-digits", "mobilenetv2-digits", linear):
        data = "digits" if teacher is linear else None
        objective = Objective(EnvironmentSpec.of_keywords(teacher=teacher, data=data, budget=budget, **QUICK))
        for _ in range(5):
            walk = objective.begin(objective.draw_limits(rng))
            while not walk.done:
                found.append(objective.observe(walk))
                walk.step(*rng.uniform(-1, 1, 2))
    return objective.embedding.names, np.array(found)


def test_every_entry_of_the_observation_varies_but_for_resources_without_a_limit(seen):
    names, values = seen
    constant = {name for name, column in zip(names, values.T) if np.ptp(column) < 0.01}
    assert constant == {"budget latency", "spent latency"}
    assert names == tuple(name for name, _, _ in entries())


def test_no_two_entries_of_the_observation_are_the_same(seen):
    names, values = seen
    known = [i for i, name in enumerate(names) if "latency" not in name]
    correlation = np.abs(np.corrcoef(values[:, known].T)) - np.eye(len(known))
    i, j = np.unravel_index(correlation.argmax(), correlation.shape)
    assert correlation.max() < 0.999, (names[known[i]], names[known[j]])
