"""Imagined episodes: a model in place of the evaluation, everything else as in the environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from tqdm import tqdm

import compress_env  # noqa: F401
from compress_env.agents.dyna import Dyna
from compress_env.agents.policy_selection import PolicySelection
from compress_env.agents.surrogate import Surrogate, features
from compress_env.search.run import Recorder, search


def make(**arguments) -> gym.Env:
    return gym.make("LayerRemovalPlanted-v0", **arguments)


def test_the_model_predicts_what_it_has_not_seen_and_knows_where_it_does_not_know():
    rng = np.random.default_rng(0)
    model, x = Surrogate(), rng.uniform(0, 1, (60, 4))

    def reward(points):
        return 0.3 + 0.1 * points[:, 0] - 0.2 * np.abs(points[:, 1] - 0.4)

    for point, value in zip(x[:40], reward(x[:40])):
        model.observe(point, value)
    mean, deviation = model(x[40:])
    assert np.abs(mean - reward(x[40:])).max() < 0.02 and deviation.max() < 0.03
    _, far = model(np.full((1, 4), 4.0))
    assert far[0] > 3 * deviation.max()


class Sum:
    """A model for which a plan is the better, the more is kept, and which is sure of it."""

    rewards: list[float] = []

    def __call__(self, features):
        return features.sum(1), np.zeros(len(features))

    def observe(self, features, reward):
        pass


@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"macs": (0.3, 0.8)}])
def test_only_the_most_promising_of_a_round_is_played_within_the_limits_that_were_imagined(budget):
    recorder = Recorder(make(budget=budget), 20, 0, None, tqdm(disable=True))
    env = Dyna(recorder, real=3, imagined=4, varied=10, seed=0)
    env.model = Sum()
    rng = np.random.default_rng(0)

    def play() -> tuple[float, dict]:
        env.reset(seed=0 if not env.students else None)
        done = False
        while not done:
            observation, reward, done, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
            assert env.observation_space.contains(observation)
        return reward, info

    for i in range(3):
        assert play()[1] and recorder.played == i + 1
    imagined = [play() for _ in range(3)]
    assert all(info == {} for _, info in imagined) and recorder.played == 3
    limits = env.limits
    low, high = np.broadcast_to(budget["macs"], 2)
    assert low <= limits["macs"] / env.unwrapped.cost_model.teacher["macs"] <= high
    imagined.append(play())
    assert recorder.played == 4 and env.limits is None and not env.round
    real = recorder.trials[-1]
    assert real.outcome.feasible and real.outcome.budget["macs"] == pytest.approx(limits["macs"])
    assert real.plan.key not in {t.plan.key for t in recorder.trials[:-1]}
    assert len(env.lessons) == env.lessons_a_round == 5 and env.lessons[-1].reward == real.reward
    graph = env.problem.graph
    kept = features(graph, frozenset(real.plan.removed), graph.widths(real.plan)).sum()
    assert kept == max(*(reward for reward, _ in imagined), *(lesson.reward for lesson in env.lessons[:-1]))
    steps = list(env.transitions())
    assert len(steps) == 5 * env.unwrapped.steps and not env.lessons
    assert [done for *_, done in steps] == ([False] * (env.unwrapped.steps - 1) + [True]) * 5
    assert all(np.array_equal(a[1], b[0]) for a, b in zip(steps, steps[1:]) if not a[4])


def test_learning_in_imagination_finds_more_than_playing_real_episodes_only_and_its_time_counts():
    best = {}
    for name, settings in (("imagined", {}), ("real", {"imagined": 0})):
        found = search(make(), "ddpg", 50, seed=0, progress=False, settings=settings)
        assert len(found.trials) == 50
        best[name] = max(t.reward for t in found.trials)
        assert sum(t.seconds for t in found.trials) > 0.7 * found.seconds
    assert best["imagined"] > 0.98 > best["real"]


def test_variations_climb_the_model_from_the_uniform_student_and_flip_its_units():
    env = Dyna(
        Recorder(make(budget={"macs": 0.4}), 20, 0, None, tqdm(disable=True)), real=1, imagined=1, varied=90, seed=0
    )
    env.model = Sum()
    env.reset(seed=0)
    for _ in range(env.unwrapped.steps):
        env.step(np.zeros(2, np.float32))
    env.limits = dict(env.students[0].limits)
    found = env._variations()
    first, second, third = (np.mean([i.reward for i in found[k : k + 30]]) for k in (0, 30, 60))
    assert len(found) == 90 and first < second < third
    blocks = len(env.problem.graph.blocks)
    assert {bool((i.actions[:blocks, 0] < 0).any()) for i in found[:30]} == {True, False}


def test_of_the_policies_on_the_way_the_one_that_the_model_trusts_most_is_left():
    env = Dyna(Recorder(make(budget={"macs": (0.3, 0.8)}), 20, 0, None, tqdm(disable=True)), 1, 1, 0, 0)
    env.model, trusted, actor = Sum(), PolicySelection(env), torch.nn.Linear(1, 1)
    sums = {}
    for weight in (3, 1, 6, 5, 4, 2, 7, 0, 6):
        sparsity = min(1.0, abs(weight - 5) / 4)

        def policy(observation, sparsity=sparsity):
            return np.array([1.0, sparsity], np.float32)

        torch.nn.init.constant_(actor.weight, weight)
        trusted.look(actor, policy)
        sums[weight] = env.plans_of(policy).sum(1).mean()
    assert len(trusted.actors) == 5
    assert [a.weights["weight"].item() for a in trusted.actors][0] == max(sums, key=sums.get)
    trusted.give(actor)
    assert actor.weight.item() == max(sums, key=sums.get)
    limits = [b["macs"] / env.unwrapped.cost_model.teacher["macs"] for b in env.unwrapped.budgets(5)]
    np.testing.assert_allclose(limits, np.linspace(0.3, 0.8, 5))
    assert len(make(budget={"macs": 0.5}).unwrapped.budgets(5)) == 1


def test_what_a_search_leaves_is_no_worse_than_the_uniform_student():
    found = [search(make(budget={"macs": 0.3}), "ddpg", 25, seed, progress=False) for seed in range(3)]
    assert all(f.final_policy.reward >= f.trials[0].reward for f in found)
