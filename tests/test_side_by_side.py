"""Algorithms of Stable-Baselines3 with several workers: environments in lockstep, whose students are judged at once."""

from __future__ import annotations

from concurrent.futures import Future

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from test_workers import SETTINGS, same

from compress_env.agents.ddpg import ddpg
from compress_env.agents.sb3 import off_policy
from compress_env.agents.sb3.noise import DecayingNoise
from compress_env.agents.sb3.vector import settings_for
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.search.executors import Outcome
from compress_env.search.recorder import Recorder
from compress_env.search.run import search
from compress_env.search.store import RunFolder
from compress_env.spec import EnvironmentSpec

RANGE = {**SETTINGS, "budget": {"macs": (0.3, 0.7)}}


class Here:
    """Judges in this process; makes no processes for a test that is about what is judged, and counts."""

    judged = 0

    def __init__(self, objective: Objective, places: int, cluster: str | None):
        self.objective, self.places = objective, places

    def submit(self, task):
        Here.judged += 1
        judged = self.objective.judge_plan(task.removed, task.widths, task.limits)
        future: Future[Outcome] = Future()
        future.set_result(Outcome(judged.plan, judged.evaluation, judged.repeated))
        return future

    def close(self):
        pass


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr("compress_env.search.run.executor_for", Here)
    monkeypatch.setattr(Here, "judged", 0)


@pytest.fixture(scope="module")
def make():
    problem = Problem.build(EnvironmentSpec.of_keywords(**SETTINGS).problem)
    return lambda settings=SETTINGS: Objective(EnvironmentSpec.of_keywords(**settings), problem=problem)


@pytest.mark.parametrize("name", ["ddpg", "ppo"])
def test_one_environment_in_lockstep_is_the_search_without_workers(name, make, monkeypatch):
    alone = search(make(RANGE), name, 5, 3, progress=False)
    monkeypatch.setattr("compress_env.search.run.executor_for", Here)
    found = search(make(RANGE), name, 5, 3, progress=False, cluster="here")
    assert same(found.trials, alone.trials) and found.final_policy.same(alone.final_policy)


@pytest.mark.parametrize(
    "name, settings", [("ddpg", {"gradient_steps": 9}), ("stable_baselines3:SAC", {"learning_starts": 9}), ("a2c", {})]
)
def test_trials_depend_on_the_seed_and_on_the_number_of_workers_and_are_as_many_as_asked_for(name, settings, make, here):
    first = search(make(), name, 8, 3, progress=False, settings=settings, workers=3)
    judged = Here.judged
    again = search(make(), name, 8, 3, progress=False, settings=settings, workers=3)
    assert [t.index for t in first.trials] == list(range(8)) and same(first.trials, again.trials)
    assert judged <= 8 and len({t.plan for t in first.trials}) > 4
    assert first.final_policy.same(again.final_policy)
    other = search(make(), name, 4, 3, progress=False, settings=settings, workers=2)
    assert not all(a.same(b) for a, b in zip(other.trials, again.trials))


def test_it_learns_as_much_from_each_student_as_alone_and_after_whole_rounds(make, here):
    agents, updates = [], []
    for workers in (1, 2):
        agents.append(ddpg(objective := make(), 10, 0, warmup_share=0.25))
        updates.append([])

        class Counting(stable_baselines3.DDPG):
            def train(self, gradient_steps, batch_size, seen=updates[-1]):
                seen.append((self.num_timesteps // 9, gradient_steps))
                super().train(gradient_steps, batch_size)

        agents[-1].algorithm = Counting
        search(objective, lambda *_: agents[-1], 10, 0, progress=False, workers=workers)  # noqa: B023
    each = 6 * 9
    assert updates[0] == [(n, each) for n in range(3, 9)]  # the first student, two random ones, and not after the last
    assert updates[1] == [(n, 2 * each) for n in (2, 4, 6, 8)]
    before, after = (a.model.actor.state_dict() for a in agents)
    assert not all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name, workers", [("ddpg", 3), ("a2c", 3), ("ddpg", 1)])
def test_interrupted_in_the_middle_of_a_round_it_goes_on_to_the_same_trials(name, workers, make, here, tmp_path, monkeypatch):
    monkeypatch.setattr(off_policy, "SAVE_AFTER", 0.0)
    monkeypatch.setattr("compress_env.search.run._save_policy", lambda *_: None)
    given = {"seed": 1, "progress": False, "settings": {"gradient_steps": 9} if name == "ddpg" else None}
    whole = search(make(RANGE), name, 11, **given, workers=workers)
    record = Recorder.record

    def interrupt(self, judged):
        trial = record(self, judged)
        if self.played == 8:  # the first student, two rounds and the first of the third
            raise KeyboardInterrupt
        return trial

    monkeypatch.setattr(Recorder, "record", interrupt)
    part = search(make(RANGE), name, 11, out=tmp_path, **given, workers=workers)
    assert part.interrupted and same(part.trials, whole.trials[:8])
    monkeypatch.setattr(Recorder, "record", record)
    assert (tmp_path / "agent.checkpoint").exists() == (name == "ddpg")
    Here.judged = 0
    resumed = search(make(RANGE), name, 11, out=tmp_path, **given, workers=workers)
    assert same(resumed.trials, whole.trials) and same(RunFolder(tmp_path).trials(), whole.trials)
    assert Here.judged <= 1  # 10, since 8 and 9 had been judged before their turn
    assert resumed.final_policy.same(whole.final_policy) and not (tmp_path / "ahead.jsonl").exists()
    with pytest.raises(UserError, match="cannot be reproduced.*another number of workers"):
        search(make(RANGE), name, 12, out=tmp_path, **given, workers=2)


def test_two_processes_find_the_students_that_this_one_finds(make, monkeypatch):
    processes = search(make(), "a2c", 6, 0, progress=False, workers=2)
    monkeypatch.setattr("compress_env.search.run.executor_for", Here)
    assert same(processes.trials, search(make(), "a2c", 6, 0, progress=False, workers=2).trials)


class Loop:
    def __init__(self, *_):
        pass

    def drive(self, env, checkpoint):
        raise AssertionError

    def policy(self):
        pass


@pytest.mark.parametrize("agent", ["dyna-ddpg", "amc", "ars", Loop])
def test_agents_with_one_environment_say_so_before_any_work(agent, make):
    with pytest.raises(UserError, match=r"drives one environment.*--workers 1.* random .*sac"):
        search(make(), agent, 9, progress=False, workers=2)


def test_an_environment_that_only_this_process_has_is_refused(make, here):
    env = gym.make("LayerRemoval-v0", **SETTINGS)
    assert len(search(env, "a2c", 2, progress=False, workers=2).trials) == 2

    class Own(LayerRemovalEnv):
        def step(self, action):
            return super().step(-action)

    for own in (gym.wrappers.ClipAction(env), gym.wrappers.OrderEnforcing(gym.wrappers.TimeLimit(env, 99)), Own.of(make())):
        with pytest.raises(UserError, match="an environment each.*(ClipAction|TimeLimit|Own).*workers=1"):
            search(own, "a2c", 2, progress=False, workers=2)


@pytest.mark.parametrize("given, places, expected", [
    ({"n_steps": 36, "batch_size": 36}, 2, {"n_steps": 18, "batch_size": 36}),
    ({"n_steps": 36, "batch_size": 36}, 3, {"n_steps": 18, "batch_size": 54}),
    ({"n_steps": 36, "batch_size": 36}, 8, {"n_steps": 9, "batch_size": 36}),
    ({}, 4, {"n_steps": 512}), ({"n_steps": 20}, 8, {"n_steps": 3}),
])  # fmt: skip
def test_roll_outs_are_together_as_long_as_with_one_environment(given, places, expected):
    assert settings_for(stable_baselines3.PPO, given, 9, places) == expected
    assert settings_for(stable_baselines3.SAC, given, 9, places) == given


def test_noise_decays_by_the_students_of_all_environments():
    alone = DecayingNoise(2, 0.5, 0.05, 3, 13)
    shares = [alone.share(place, 2, 3) for place in range(2)]
    alone.reset()  # as when learning begins
    for _ in range(5):
        for noise in shares:
            noise.reset()
        for noise in shares:
            assert noise.episode == alone.episode and (noise.decay, noise.warmup) == (alone.decay, alone.warmup)
            alone.reset()
