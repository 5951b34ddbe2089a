"""Episodes against a surrogate model of the reward: everything but the reward is as in the environment."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from compress_env.agents.dyna import Dyna
from compress_env.agents.policy_selection import PolicySelection
from compress_env.agents.surrogate import Surrogate, features
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.envs.planted import LayerRemovalPlantedEnv
from compress_env.objective import Objective
from compress_env.search import search
from compress_env.search.recorder import Recorder
from compress_env.search.run import RecordingEnv

pytestmark = pytest.mark.usefixtures("one_problem")


def make(**arguments: Any) -> Objective:
    return LayerRemovalPlantedEnv.make_objective(False, **arguments)


def recording(objective: Objective) -> RecordingEnv:
    return RecordingEnv(LayerRemovalEnv.of(objective), Recorder(objective, 20, 0, None, tqdm(disable=True)))


def test_the_model_predicts_what_it_has_not_seen_and_knows_where_it_does_not_know():
    rng = np.random.default_rng(0)
    model, x = Surrogate(), np.concatenate([rng.normal(0, 5, (60, 1)), rng.uniform(0, 1, (60, 4))], 1)

    def reward(points):  # what is predicted, the first entry, is off by a function of the plan
        return points[:, 0] + 0.3 + 0.1 * points[:, 1] - 0.2 * np.abs(points[:, 2] - 0.4)

    for point, value in zip(x[:40], reward(x[:40])):
        model.observe(point, value)
    mean, deviation = model(x[40:])
    assert np.abs(mean - reward(x[40:])).max() < 0.02 and deviation.max() < 0.03
    _, far = model(np.full((1, 5), 4.0))
    assert far[0] > 3 * deviation.max()


class Sum:
    """A surrogate for which a plan is the better, the more is kept, and which is sure of it."""

    rewards: list[float] = []

    def __call__(self, points):
        return points[:, 1:].sum(1), np.zeros(len(points))

    def observe(self, point, reward):
        pass


@pytest.mark.parametrize("actions", ["absolute", "relative"])
@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"macs": (0.3, 0.8)}])
def test_only_the_best_of_a_round_is_evaluated_within_the_limits_that_the_model_was_asked_for(budget, actions):
    objective = make(budget=budget, actions=actions)
    recorded = recording(objective)
    env = Dyna(recorded, evaluated=3, model_episodes=4, mutations=10, seed=0)
    env.model.surrogate = Sum()
    rng = np.random.default_rng(0)

    def play() -> tuple[float, dict]:
        env.reset(seed=0 if not env.model.students else None)
        done, total = False, 0.0
        while not done:
            observation, reward, done, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
            total += reward
            assert env.observation_space.contains(observation)
        return total, info

    for i in range(3):
        assert play()[1] and recorded.played == i + 1
    episodes = [play() for _ in range(3)]
    assert all(info == {} for _, info in episodes) and recorded.played == 3
    assert [total for total, _ in episodes] == pytest.approx([candidate.reward for candidate in env.round], abs=1e-9)
    limits = env.limits
    low, high = np.broadcast_to(budget["macs"], 2)
    assert low <= limits["macs"] / objective.problem.cost_model.teacher["macs"] <= high
    episodes.append(play())
    assert recorded.played == 4 and env.limits is None and not env.round
    trial = recorded.last
    assert trial.feasible and trial.limits["macs"] == pytest.approx(limits["macs"])
    assert trial.plan not in {t.plan for t in recorded.trials[:-1]}
    assert len(env.demonstrations) == 5 and env.demonstrations[-1].reward == trial.reward
    graph, steps = objective.problem.graph, objective.steps
    kept = features(graph, frozenset(trial.plan.removed), graph.widths(trial.plan)).sum()
    best = max(*(reward for reward, _ in episodes), *(shown.reward for shown in env.demonstrations[:-1]))
    assert kept == pytest.approx(best, abs=1e-9) or (actions == "relative" and kept < best)  # relative ones may give a known plan
    rewards = [shown.reward for shown in env.demonstrations]
    transitions = list(env.transitions())
    assert len(transitions) == 5 * steps and not env.demonstrations
    assert [done for *_, done in transitions] == ([False] * (steps - 1) + [True]) * 5
    assert all(np.array_equal(a[1], b[0]) for a, b in zip(transitions, transitions[1:]) if not a[4])
    given = np.array([reward for *_, reward, _ in transitions]).reshape(5, steps)
    assert given.sum(1) == pytest.approx(rewards, abs=1e-9) and (given[:, :-1] != 0).any()


def test_without_shaping_episodes_of_the_model_are_rewarded_at_their_end_alone():
    objective = make(budget={"macs": 0.4}, shaping=False)
    env = Dyna(recording(objective), evaluated=1, model_episodes=2, mutations=10, seed=0)
    env.model.surrogate = Sum()
    for _ in range(3):
        env.reset(seed=0 if not env.model.students else None)
        rewards = [env.step(np.full(2, 0.3, np.float32))[1] for _ in range(objective.steps)]
        assert not any(rewards[:-1]) and rewards[-1] != 0
    given = [reward for *_, reward, _ in env.transitions()]
    assert len(given) == 3 * objective.steps
    assert [i % objective.steps for i, reward in enumerate(given) if reward] == [objective.steps - 1] * 3


def test_learning_against_a_model_finds_more_than_evaluating_every_episode_and_its_time_counts():
    best = {}
    for agent in ("ddpg", "dyna-ddpg"):
        begun = perf_counter()
        found = search(make(), agent, 50, seed=0, progress=False)
        assert len(found.trials) == 50
        best[agent] = max(t.reward for t in found.trials)
    assert sum(t.seconds for t in found.trials) > 0.7 * (perf_counter() - begun)
    assert best["dyna-ddpg"] > 0.94 > best["ddpg"]


def test_mutants_climb_the_model_from_the_uniform_student_and_flip_its_blocks():
    objective = make(budget={"macs": 0.4})
    env = Dyna(recording(objective), evaluated=1, model_episodes=1, mutations=900, seed=0)
    env.model.surrogate = Sum()
    env.reset(seed=0)
    for _ in range(objective.steps):
        env.step(np.zeros(2, np.float32))
    found = env.model.mutants(dict(env.model.students[0].limits))
    first, second, third = (max(m.reward for m in found[k : k + 300]) for k in (0, 300, 600))
    assert len(found) == 900 and first < second < third
    blocks = len(objective.problem.graph.blocks)
    assert {bool((m.actions[:blocks] < 0).any()) for m in found[:300]} == {True, False}


def test_of_the_policies_on_the_way_the_one_that_the_model_rates_highest_is_left():
    objective = make(budget={"macs": (0.3, 0.8)})
    env = Dyna(recording(objective), 1, 1, 0, 0)
    env.model.surrogate, selection, actor = Sum(), PolicySelection(env), torch.nn.Linear(1, 1)
    sums = {}
    for weight in (3, 1, 6, 5, 4, 2, 7, 0, 6):
        sparsity = min(1.0, abs(weight - 5) / 4)

        def policy(observation, sparsity=sparsity):
            return np.array([1.0, sparsity], np.float32)

        torch.nn.init.constant_(actor.weight, weight)
        selection.look(actor, policy)
        sums[weight] = env.plans_of(policy)[:, 1:].sum(1).mean()
    assert len(selection.candidates) == 5
    assert [c.weights["weight"].item() for c in selection.candidates][0] == max(sums, key=sums.get)
    selection.load_best(actor)
    assert actor.weight.item() == max(sums, key=sums.get)


def test_a_search_leaves_a_policy_that_is_no_worse_than_the_uniform_student():
    env = gym.make("LayerRemovalPlanted-v0", budget={"macs": 0.3})
    found = [search(env, "dyna-ddpg", 20, seed, progress=False, settings={"mutations": 50}) for seed in range(2)]
    assert all(f.final_policy.reward >= f.trials[0].reward for f in found)
