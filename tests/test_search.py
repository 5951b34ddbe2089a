"""Searches: every agent by one interface, trials that survive a kill, and runs that resume to the same trials."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.noise import NormalActionNoise
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm.auto import tqdm

from compress_env.agents.sb3 import OffPolicyAgent, off_policy
from compress_env.agents.sb3.noise import DecayingNoise
from compress_env.api import finish, run_search
from compress_env.contexts import own_random_state
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.registry import load_attribute
from compress_env.search import search
from compress_env.search.agent import Proposal
from compress_env.search.recorder import Recorder
from compress_env.search.run import AGENTS, RecordingEnv, find_agent
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial, best_trial
from compress_env.search.validate import differences
from compress_env.spec import EnvironmentSpec, SearchSpec
from compress_env.surgery.plan import Plan
from compress_env.teachers import load_teacher
from compress_env.testing.agent import check_agent, planted

DYNA = ("dyna-ddpg", "dyna-td3", "dyna-sac")
OFF_POLICY = ("ddpg", "td3", "sac", "tqc", "crossq", *DYNA)
LEARNING = (*OFF_POLICY, "ppo", "a2c", "ars", "amc", "reinforce")
NAMES = sorted(set(AGENTS) - {"policy"})  # which needs a file: test_policy.py
QUICK = {"budget": {"macs": 0.25}, "evaluator": {"calibration_images": 64, "validation_images": 100}}
SPEC = EnvironmentSpec.of_keywords(**QUICK)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.build(SPEC.problem)


class Counting(Evaluator):
    """An evaluator that counts the students it runs."""

    ran = 0

    def outputs(self, student, plan):
        self.ran += 1
        return super().outputs(student, plan)


@pytest.fixture
def make(problem):
    """Fresh objectives of the one problem: none knows what another has judged."""
    def factory(**settings) -> Objective:
        return Objective(replace(SPEC, **settings), problem=problem, evaluator=Counting(problem, SPEC.evaluator))

    return factory


def same(a: list[Trial], b: list[Trial]) -> bool:
    return len(a) == len(b) and all(x.same(y) for x, y in zip(a, b))


def trial(index=0, reward=0.5, used=0.4, failed="") -> Trial:
    evaluation = Evaluation({"accuracy": 0.5}, 0.1, {"macs": used}, {"accuracy": 0.9}, {"macs": 1.0}, failed)
    terms = {"accuracy": reward}
    return Trial(index, Plan.of(["a"], {"b": 3}), evaluation, {"macs": 0.5}, reward, terms, False, 0, 1.5, "p", "r")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dyna-td3", "dyna-sac"}))  # they do as dyna-ddpg does
def test_every_agent_keeps_the_promises_of_agents(name):
    check_agent(name, evaluations=4 if name in OFF_POLICY else 6)


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_searches_within_the_budget_and_its_trials_are_recorded(name, make, tmp_path):
    found = search(make(), name, 4, seed=3, out=tmp_path, progress=False)
    assert len(found.trials) == (1 if name == "uniform" else 4) or (name == "allocation" and 0 < len(found.trials) < 4)
    assert all(t.feasible and t.limits == {"macs": found.trials[0].limits["macs"]} for t in found.trials)
    assert [t.index for t in found.trials] == list(range(len(found.trials)))
    assert same(RunFolder(tmp_path).trials(), found.trials)
    assert (found.final_policy is not None) == (name in LEARNING)
    assert (tmp_path / "policy.onnx").exists() == (name in set(LEARNING) - {"reinforce"})
    if name not in ("uniform", "allocation", *OFF_POLICY):
        assert not same(found.trials, search(make(), name, 4, seed=4, progress=False).trials)


class Careless:
    """An agent of a user's own that breaks one promise."""

    def __init__(self, objective, evaluations, seed, fault=""):
        self.steps, self.fault, self.rng = objective.steps, fault, np.random.default_rng(seed)
        self.last = 0.0
        if fault == "unseeded":
            self.rng = np.random.default_rng()

    def ask(self, n):
        actions = [self.rng.uniform(-1, 1, (self.steps, 2)) for _ in range(n + (self.fault == "too many"))]
        if self.fault == "last told":
            actions = [np.full_like(a, self.last / 2) for a in actions]
        if self.fault == "bounds":
            actions[0][0] = 1.5
        if self.fault == "shape":
            actions = [a[:-1] for a in actions]
        return [Proposal(a) for a in actions]

    def tell(self, trials):
        self.last = trials[-1].reward

    def policy(self):
        return (lambda observation: self.rng.uniform(-1, 1, 2)) if self.fault == "chance" else None


@pytest.mark.parametrize("fault, told", [
    ("too many", "asked for .* students and proposed"), ("bounds", r"outside \[-1, 1\]"), ("shape", "of shape"),
    ("unseeded", "other trials with the same seed"), ("last told", "in another order"), ("chance", "with another action"),
])  # fmt: skip
def test_an_agent_that_breaks_a_promise_is_told_which(fault, told):
    check_agent(Careless)
    with pytest.raises(AssertionError, match=f"Careless.*{told}"):
        check_agent(Careless, settings={"fault": fault})


def recording(objective: Objective, evaluations: int) -> Recorder:
    return Recorder(objective, evaluations, 0, None, tqdm(disable=True))


def test_several_students_are_proposed_at_once_where_none_depends_on_another():
    objective = planted()
    counts = {
        "random": 30, "tpe": 30, "cma-es": 30, "evolution": 20, "reinforce": 1, "greedy": 1, "uniform": 1, "stages": 30, "model": 1,
    }  # fmt: skip
    assert {name: len(find_agent(name)(objective, 50, 0).ask(30)) for name in counts} == counts
    recorder, agents = recording(objective, 50), {name: find_agent(name)(objective, 50, 0) for name in ("reinforce", "evolution")}
    agents["reinforce"].tell([recorder.play(p) for p in agents["reinforce"].ask(30)])
    assert [len(agents["reinforce"].ask(n)) for n in (3, 3, 3)] == [3, 2, 0]  # five rollouts, then it waits
    recorder = recording(objective, 50)
    first = [recorder.play(p) for p in agents["evolution"].ask(30)]
    assert agents["evolution"].ask(5) == []  # there is nothing to breed from yet
    agents["evolution"].tell(first[4:])
    assert len(agents["evolution"].ask(5)) == 5  # it does not wait for the slowest
    recorder, agent = recording(objective, 50), find_agent("model")(objective, 50, 0)
    (first,) = agent.ask(30)
    assert agent.ask(5) == []  # nothing is known yet
    agent.tell([recorder.play(first)])
    several = [recorder.play(p) for p in agent.ask(5)]
    assert len({t.plan for t in several}) == 5


def test_an_agents_options_reach_it_and_wrong_ones_are_refused_before_anything_is_judged(make):
    many = {"population": 3, "mutations": 9.0}
    trials = [search(make(), "evolution", 8, seed=0, progress=False, settings=s).trials for s in (None, many)]
    assert same(trials[0][:3], trials[1][:3]) and not same(*trials)
    objective = make()
    with pytest.raises(UserError, match="the agent 'random' cannot be made with these settings.*'population'"):
        search(objective, "random", 8, progress=False, settings=many)
    for wrong in ({"model_episodes": 2.5}, {"mutations": -1}):
        with pytest.raises(UserError, match="is a number of episodes, 0 or more; got"):
            search(objective, "ddpg", 8, progress=False, settings=wrong)
    with pytest.raises(UserError, match="mutations is a number of students, 1 or more; got 0"):
        search(objective, "model", 8, progress=False, settings={"mutations": 0})
    assert len(search(make(), "model", 4, progress=False, settings={"mutations": 1}).trials) == 4
    with pytest.raises(UserError, match="PPO does not take these settings.*'tau'"):
        search(objective, "ppo", 8, progress=False, settings={"tau": 0.1})
    with pytest.raises(UserError, match="Nothing is no agent: it needs ask"):
        search(objective, type("Nothing", (), {"__init__": lambda *_: None}), 8, progress=False)
    assert objective.evaluator.ran == 0
    agent = OffPolicyAgent("DDPG", objective, 4, 0, learning_rate=0.5)
    assert [OffPolicyAgent("DDPG", objective, 4, 0).settings["learning_rate"], agent.settings["learning_rate"]] == [1e-3, 0.5]


@pytest.mark.parametrize("spec, settings", [
    ("stable_baselines3:SAC", {"learning_starts": 9, "tau": 0.01}), ("sb3_contrib:TRPO", {"n_steps": 9, "batch_size": 9}),
    ("stable_baselines3:TD3", {"learning_starts": 9, "action_noise": 0.3}),
])  # fmt: skip
def test_a_class_with_stable_baselines_interface_is_an_agent_as_it_is(spec, settings, make):
    found = search(make(), spec, 7, seed=3, progress=False, settings=settings)
    assert len(found.trials) == 7 and found.final_policy
    env, played = LayerRemovalEnv.of(make()), []
    env.on_judged = played.append
    if "action_noise" in settings:
        settings = settings | {"action_noise": NormalActionNoise(np.zeros(2), np.full(2, settings["action_noise"]))}
    with own_random_state():
        load_attribute(spec, "class")("MlpPolicy", env, seed=3, device="cpu", **settings).learn(7 * env.objective.steps)
    assert [(t.plan, t.reward) for t in found.trials] == [(j.plan, j.reward) for j in played[:7]]
    with pytest.raises(UserError, match="does not take these settings.*'mutations'"):
        search(make(), spec, 4, progress=False, settings={"mutations": 3})


def test_an_agent_that_drives_gets_the_users_wrappers(make):
    class Counted(gym.Wrapper):
        steps = 0

        def step(self, action):
            self.steps += 1
            return super().step(action)

    env = Counted(LayerRemovalEnv.of(make()))
    found = search(env, "a2c", 5, 0, progress=False)
    assert env.steps == 5 * env.unwrapped.objective.steps
    assert same(found.trials, search(make(), "a2c", 5, 0, progress=False).trials)


def test_the_predecessor_removes_first_then_shrinks_the_best_of_what_is_left(make):
    found = search(make(actions="absolute"), "reinforce", 40, seed=0, progress=False)
    first, second = found.trials[:20], found.trials[20:]
    best = max(first, key=lambda t: t.reward)
    assert len({t.plan.removed for t in first}) > 1
    assert {t.plan.removed for t in second} == {best.plan.removed} and len({t.plan.widths for t in second}) > 5
    assert found.final_policy.plan.removed == best.plan.removed  # the policy is that of both stages


@pytest.mark.parametrize("name, with_checkpoint", [
    ("random", False), ("ddpg", True), ("sac", True), ("ddpg", False), ("ppo", False), ("model", False), ("dyna-ddpg", True),
])  # fmt: skip
def test_an_interrupted_search_resumes_to_the_trials_of_an_uninterrupted_one(
    name, with_checkpoint, make, tmp_path, monkeypatch
):
    monkeypatch.setattr(off_policy, "SAVE_AFTER", 0.0)
    whole = search(make(), name, 9, seed=1, progress=False)
    record = Recorder.record

    def interrupt(self, judged):
        recorded = record(self, judged)
        if self.played == 5:
            raise KeyboardInterrupt
        return recorded

    monkeypatch.setattr(Recorder, "record", interrupt)
    part = search(make(), name, 9, seed=1, out=tmp_path, progress=False)
    assert part.interrupted and same(part.trials, whole.trials[:5])
    monkeypatch.setattr(Recorder, "record", record)
    checkpoint = tmp_path / "agent.checkpoint"
    assert checkpoint.exists() == (name in OFF_POLICY)
    if not with_checkpoint:
        checkpoint.unlink(missing_ok=True)
    objective = make()
    resumed = search(objective, name, 9, seed=1, out=tmp_path, progress=False)
    assert same(resumed.trials, whole.trials) and same(RunFolder(tmp_path).trials(), whole.trials)
    assert objective.evaluator.ran <= 4 + (whole.final_policy is not None)  # what was recorded is not judged again
    if whole.final_policy:
        assert resumed.final_policy.same(whole.final_policy)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    "content", [pickle.dumps(Harmful()), b"damaged", "saved"], ids=["harmful", "damaged", "harmful, saved by torch"]
)
def test_a_checkpoint_runs_no_code_and_is_not_needed(content, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = search(make(), "ddpg", 5, seed=1, out=tmp_path / "run", progress=False)
    checkpoint = tmp_path / "run" / "agent.checkpoint"
    if content == "saved":
        torch.save({"episodes": Harmful()}, checkpoint)
    else:
        checkpoint.write_bytes(content)
    again = search(make(), "ddpg", 6, seed=1, out=tmp_path / "run", progress=False)
    assert same(again.trials[:5], before.trials) and len(again.trials) == 6
    assert not (tmp_path / "harmed").exists()


def test_a_killed_process_resumes_to_the_same_trials(make, tmp_path):
    script = (
        "import sys, gymnasium as gym, torch, compress_env; torch.set_num_threads(1)\n"
        "from compress_env.search import search\n"
        f"search(gym.make('LayerRemoval-v0', **{QUICK!r}), 'ddpg', 12, 2, sys.argv[1], progress=False)"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    file = tmp_path / "killed" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is working in .* choose another --out"):
        search(make(), "random", 6, out=file.parent, progress=False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(RunFolder(file.parent).trials())
    assert 5 <= done < 12
    with file.open("a") as torn:
        torn.write('{"index": 99, "plan"')
    subprocess.run([*command, str(file.parent)], check=True, env=environment)
    killed, whole = RunFolder(file.parent).trials(), search(make(), "ddpg", 12, 2, progress=False).trials
    assert len(whole) == 12 and same(killed, whole)


def test_a_run_whose_teacher_has_changed_is_neither_resumed_nor_finished(tmp_path):
    weights = tmp_path / "teacher.pt"
    module = load_teacher("resnet8-digits").module
    torch.save(module.state_dict(), weights)
    spec = EnvironmentSpec.of_keywords(
        teacher="compress_env.teachers.resnet:resnet8_digits", weights=weights, data="digits", **QUICK
    )
    folder, _ = run_search(spec, SearchSpec("random", {}, 2, 0), tmp_path / "run", progress=False)
    again, objective = run_search(spec, SearchSpec("random", {}, 2, 0), tmp_path / "run", resume=True, progress=False)
    assert len(again.trials()) == 2 and objective.problem.id == folder.trials()[0].problem
    with torch.no_grad():
        module.fc.weight.mul_(1.01)
    torch.save(module.state_dict(), weights)
    with pytest.raises(UserError, match="trial 0 of .*/run was recorded for another problem: the teacher's weights"):
        run_search(spec, SearchSpec("random", {}, 2, 0), tmp_path / "run", resume=True, progress=False)
    with pytest.raises(UserError, match="recorded for another problem"):
        finish(folder, 1, progress=False, trust=True)


def test_a_run_made_with_other_settings_is_not_resumed(tmp_path):
    folder, settings = RunFolder(tmp_path), SearchSpec(agent="random", evaluations=5)
    folder.admit(SPEC, settings, resume=False)
    folder.begin(SPEC, settings)
    folder.append(trial())
    with pytest.raises(UserError, match="add --resume"):
        folder.admit(SPEC, settings, resume=False)
    folder.admit(SPEC, settings, resume=True)
    with pytest.raises(UserError, match="begun with agent='random', not 'ddpg'"):
        folder.admit(SPEC, replace(settings, agent="ddpg"), resume=True)


def test_trials_survive_json():
    first = trial(failed="out of memory")
    second = Trial.from_json(json.loads(json.dumps(first.to_json())))
    assert second == first and second.feasible


def test_the_best_trial_meets_the_budget_did_not_fail_and_is_the_earliest_of_equals():
    trials = [trial(0, 0.9, used=0.6), trial(1, 0.7), trial(2, 0.7), trial(3, 0.8, failed="diverged")]
    assert best_trial(trials).index == 1
    assert best_trial(trials[:1]) is None


def test_a_search_leaves_the_global_random_states_and_threads_as_they_were(make):
    def blas() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    def on_trial(_) -> None:
        within.append((torch.get_num_threads(), blas()))

    objective, within = make(), []
    with threadpool_limits(2, user_api="blas"):
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads()
        search(objective, "sac", 3, seed=0, progress=False, callbacks=[SimpleNamespace(on_trial=on_trial)])
        assert within == [(1, {1})] * 3 and blas() == {2}
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2]) and torch.get_num_threads() == before[3]


def test_recorded_trials_are_validated_and_a_forged_one_is_found(make):
    trials = search(make(), "random", 3, seed=0, progress=False).trials
    assert differences(make(), trials, 3) == (3, [])
    good = trials[0]
    forged = {
        "accuracy": replace(good, evaluation=replace(good.evaluation, metrics={"accuracy": 0.999})),
        "kl": replace(good, evaluation=replace(good.evaluation, kl=good.evaluation.kl / 2)),
        "reward": replace(good, reward=good.reward + 1e-6),
    }
    for name, wrong in forged.items():
        assert differences(make(), [wrong], 1)[1][0].startswith(f"trial 0: {name} was")


def test_unknown_agents_and_zero_evaluations_are_refused():
    with pytest.raises(UserError, match="did you mean 'ddpg'"):
        search(None, "dpg", 5)
    with pytest.raises(UserError, match="at least 1"):
        search(None, "random", 0)


def test_exploration_is_silent_at_first_then_decays_by_episode():
    noise = DecayingNoise(2, start=0.5, end=0.05, warmup=3, episodes=13)
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
    objective = planted()
    agent = OffPolicyAgent("DDPG", objective, 4, 0, model_episodes=0)
    agent.build(RecordingEnv(LayerRemovalEnv.of(objective), recording(objective, 4)))
    assert agent.model.n_steps == objective.steps and agent.model.gamma == 1.0
    assert agent.model.train_freq.unit.value == "episode"


def test_greedy_never_gets_worse_than_the_student_of_the_action_0(make):
    found = search(make(), "greedy", 8, seed=0, progress=False)
    zero = search(make(), "model", 1, progress=False).trials[0]
    assert found.best.reward >= found.trials[0].reward == zero.reward and found.trials[0].plan == zero.plan
