"""Searches: every agent by one interface, trials that survive a kill, and runs that resume to the same trials."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from compress_env.agents import sb3
from compress_env.errors import UserError
from compress_env.rewards import Outcome
from compress_env.search import run
from compress_env.search.run import AGENTS, search
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial, best_trial
from compress_env.search.validate import differences
from compress_env.surgery.plan import Plan

LEARNING = ("ddpg", "td3", "sac", "tqc", "crossq", "ppo", "a2c", "ars", "n2n")
QUICK = {"budget": {"macs": 0.25}, "evaluator": {"calibration_images": 64, "validation_images": 100}}


def make() -> gym.Env:
    return gym.make("LayerRemoval-v0", **QUICK)


def same(a: list[Trial], b: list[Trial]) -> bool:
    return len(a) == len(b) and all(x.same(y) for x, y in zip(a, b))


def trial(index=0, reward=0.5, used=0.4, failed="") -> Trial:
    outcome = Outcome(0.5, 0.9, {"macs": used}, {"macs": 1.0}, {"macs": 0.5}, failed)
    return Trial(index, Plan.of(["a"], {"b": 3}), outcome, reward, {"accuracy": reward}, False, 0, 1.5)


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"policy"}))  # which needs a file: test_policy.py
def test_every_agent_searches_within_the_budget_and_repeats_exactly(name, tmp_path):
    first = search(make(), name, 6, seed=3, out=tmp_path / "a", progress=False)
    second = search(make(), name, 6, seed=3, progress=False)
    assert same(first.trials, second.trials)
    assert len(first.trials) == (1 if name == "uniform" else 6)
    assert all(t.outcome.feasible for t in first.trials)
    assert [t.index for t in first.trials] == list(range(len(first.trials)))
    assert same(RunFolder(tmp_path / "a").trials(), first.trials)
    assert (first.final_policy is not None) == (name in LEARNING)
    other = search(make(), name, 6, seed=4, progress=False)
    assert name == "uniform" or not same(first.trials, other.trials)


def test_an_agents_options_reach_it_and_wrong_ones_are_refused_before_anything_is_played():
    many = {"population": 3, "mutations": 9.0}
    trials = [search(make(), "evolution", 8, seed=0, progress=False, settings=s).trials for s in (None, many)]
    assert same(trials[0][:3], trials[1][:3]) and not same(*trials)
    with pytest.raises(UserError, match="the agent 'random' cannot be made with these settings.*'population'"):
        search(make(), "random", 8, progress=False, settings=many)
    for wrong in ({"imagined": 2.5}, {"varied": -1}):
        with pytest.raises(UserError, match="is a number of episodes, 0 or more; got"):
            search(make(), "ddpg", 8, progress=False, settings=wrong)
    with pytest.raises(UserError, match="PPO does not take these settings.*'tau'"):
        search(make(), "ppo", 8, progress=False, settings={"tau": 0.1})
    env = make()
    models = [sb3.OffPolicyAgent("DDPG", run.Recorder(env, 4, 0, None, tqdm(disable=True)), 4, 0, **s).model
              for s in ({}, {"learning_rate": 0.5})]  # fmt: skip
    assert [m.learning_rate for m in models] == [1e-3, 0.5]


@pytest.mark.parametrize("spec, like", [("stable_baselines3:SAC", True), ("sb3_contrib:TRPO", False)])
def test_a_class_with_stable_baselines_interface_is_an_agent(spec, like):
    settings = {"n_steps": 9, "batch_size": 9} if not like else {"noise": None, "tau": 0.01, "ent_coef": 0.1}
    found = search(make(), spec, 7, seed=3, progress=False, settings=settings)
    assert len(found.trials) == 7 and found.final_policy
    if like:
        assert same(found.trials, search(make(), "sac", 7, seed=3, progress=False).trials)


def test_the_predecessor_removes_first_then_shrinks_the_best_of_what_is_left():
    trials = search(make(), "n2n", 40, seed=0, progress=False).trials
    first, second = trials[:20], trials[20:]
    best = max(first, key=lambda t: t.reward)
    assert len({t.plan.removed for t in first}) > 1
    assert {t.plan.removed for t in second} == {best.plan.removed} and len({t.plan.widths for t in second}) > 5


@pytest.mark.parametrize("name, with_checkpoint", [
    ("random", False), ("greedy", False), ("ddpg", True), ("ddpg", False), ("sac", True), ("ppo", False), ("tpe", False),
    ("n2n", False),
])  # fmt: skip
def test_an_interrupted_search_resumes_to_the_trials_of_an_uninterrupted_one(
    name, with_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(sb3, "SAVE_EVERY", 0.0)
    whole = search(make(), name, 9, seed=1, progress=False)
    record = run.Recorder._record

    def interrupt(self, *args):
        record(self, *args)
        if self.played == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Recorder, "_record", interrupt)
    part = search(make(), name, 9, seed=1, out=tmp_path, progress=False)
    assert part.interrupted and same(part.trials, whole.trials[:5])
    monkeypatch.setattr(run.Recorder, "_record", record)
    checkpoint = tmp_path / "agent.checkpoint"
    assert checkpoint.exists() == (name in ("ddpg", "sac"))
    if not with_checkpoint:
        checkpoint.unlink(missing_ok=True)
    env, calls = make(), []
    evaluate = env.unwrapped.evaluator
    env.unwrapped.evaluator = lambda *a: calls.append(1) or evaluate(*a)
    env.unwrapped.evaluator.teacher_accuracy = evaluate.teacher_accuracy
    resumed = search(env, name, 9, seed=1, out=tmp_path, progress=False)
    assert same(resumed.trials, whole.trials) and same(RunFolder(tmp_path).trials(), whole.trials)
    assert len(calls) <= 4 + (whole.final_policy is not None)  # what was recorded is not evaluated again
    if whole.final_policy:
        assert resumed.final_policy.same(whole.final_policy)


def test_a_killed_process_resumes_to_the_same_trials(tmp_path):
    script = (
        "import sys, gymnasium as gym, torch, compress_env; torch.set_num_threads(1)\n"
        "from compress_env.search.run import search\n"
        f"search(gym.make('LayerRemoval-v0', **{QUICK!r}), 'ddpg', 60, 2, sys.argv[1], progress=False)"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    file = tmp_path / "killed" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") >= 8):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is working in .* choose another --out"):
        search(make(), "random", 6, out=file.parent, progress=False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(RunFolder(file.parent).trials())
    assert 8 <= done < 60
    with file.open("a") as torn:
        torn.write('{"index": 99, "plan"')
    subprocess.run([*command, str(file.parent)], check=True, env=environment)
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    killed, whole = RunFolder(file.parent).trials(), RunFolder(tmp_path / "whole").trials()
    assert len(whole) == 60 and same(killed, whole)


def test_a_run_made_with_other_settings_is_not_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    settings = {"teacher": "resnet8-digits", "agent": "random", "budget": {"macs": 0.5}, "evaluations": 5, "seed": 0}
    folder.admit(settings, resume=False)
    folder.begin(settings)
    folder.append(trial())
    with pytest.raises(UserError, match="add --resume"):
        folder.admit(settings, resume=False)
    folder.admit(settings, resume=True)
    with pytest.raises(UserError, match="begun with agent='random', not 'ddpg'"):
        folder.admit({**settings, "agent": "ddpg"}, resume=True)


def test_a_torn_line_is_cut_off_and_the_next_trial_stands_alone(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(trial(0))
    with folder.trials_path.open("a") as file:
        file.write('{"index": 1, "pl')
    assert len(folder.trials()) == 1
    folder.repair()
    folder.append(trial(1))
    assert [t.index for t in folder.trials()] == [0, 1]


def test_trials_survive_json():
    first = trial(failed="out of memory")
    second = Trial.from_json(first.to_json())
    assert second == first
    assert json.loads(first.to_json())["feasible"] is True
    assert second.versions["torch"] == torch.__version__.split("+")[0]


def test_the_best_trial_meets_the_budget_did_not_fail_and_is_the_earliest_of_equals():
    trials = [trial(0, 0.9, used=0.6), trial(1, 0.7), trial(2, 0.7), trial(3, 0.8, failed="diverged")]
    assert best_trial(trials).index == 1
    assert best_trial(trials[:1]) is None


def test_a_search_leaves_the_global_random_states_and_threads_as_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads()
    search(make(), "sac", 3, seed=0, progress=False)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2]) and torch.get_num_threads() == before[3]


def test_recorded_trials_are_validated_and_a_wrong_one_is_found():
    env = make().unwrapped
    trials = search(env, "random", 3, seed=0, progress=False).trials
    assert differences(env, trials, 3) == (3, [])
    good = trials[0].outcome
    forged = Outcome(good.accuracy + 0.1, good.teacher_accuracy, good.usage, good.teacher_usage, good.budget)
    wrong = Trial(0, trials[0].plan, forged, 2.0, {}, False, 0, 0.0)
    assert differences(env, [wrong], 1)[1][0].startswith("trial 0: accuracy was")


def test_unknown_agents_and_zero_evaluations_are_refused():
    with pytest.raises(UserError, match="did you mean 'ddpg'"):
        search(None, "dpg", 5)
    with pytest.raises(UserError, match="at least 1"):
        search(None, "random", 0)


def test_exploration_is_silent_at_first_then_decays_by_episode():
    noise = sb3.DecayingNoise(2, start=0.5, end=0.05, warmup=3, episodes=13)
    scales = []
    state = np.random.get_state()
    for _ in range(14):
        scales.append(np.std([noise() for _ in range(2000)]))
        noise.reset()
    np.random.set_state(state)
    assert scales[:3] == [0, 0, 0] and scales[3] == pytest.approx(0.5, rel=0.1)
    assert scales[13] == pytest.approx(0.05, rel=0.1)
    assert scales[4] / scales[3] == pytest.approx((0.05 / 0.5) ** 0.1, rel=0.1)


def test_returns_reach_over_the_whole_episode():
    env = make()
    agent = sb3.OffPolicyAgent("DDPG", env, 4, seed=0)
    assert agent.model.n_steps == env.unwrapped.steps and agent.model.gamma == 1.0
    assert agent.model.train_freq.block.value == "episode"


def test_greedy_never_gets_worse_than_the_uniform_student():
    result = search(make(), "greedy", 8, seed=0, progress=False)
    assert (
        result.best.reward >= result.trials[0].reward == search(make(), "uniform", 1, progress=False).trials[0].reward
    )


def test_files_of_a_run_are_written_whole(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.write("result.json", {"a": 1})
    assert folder.read("result.json") == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(UserError, match=r"has no search\.json"):
        folder.read("search.json")
