"""Policies outlive their search: saved as ONNX, applied to other budgets and teachers, taken as a start, and learned from trials."""

from __future__ import annotations

import json
import shutil
from copy import copy
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import sb3_contrib
import stable_baselines3
from allocations import QUICK, anew
from gymnasium.utils.env_checker import check_env
from test_cli import call, refused, works
from tqdm.auto import tqdm

from compress_env.agents import offline
from compress_env.agents.offline import SHIFTS, SurrogateEnv, SurrogateObjective, SurrogateTeacher, learn
from compress_env.agents.policy_selection import PolicySelection
from compress_env.agents.saved import load_policy, save_policy
from compress_env.agents.sb3 import StableBaselinesAgent
from compress_env.agents.sb3.algorithm import Deterministic
from compress_env.api import learn_policy, objective_of, run_search
from compress_env.bench.zero_shot import SOLUTIONS
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.search.recorder import Recorder
from compress_env.search.run import search
from compress_env.search.store import RunFolder
from compress_env.spec import SearchSpec
from compress_env.walk.observation import entries

RANGE = {"macs": ["20%", "80%"]}
FEW = [word for name, value in QUICK["evaluator"].items() for word in ("--evaluator", f"{name}={value}")]
SHORT = {"n_steps": 64, "batch_size": 32}
"""Few updates of ppo."""


@pytest.fixture(scope="module", autouse=True)
def few_budgets():
    """Both ends and the middle of a range are looked at, and four budgets between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "BUDGETS", 7)
        yield


@pytest.fixture(scope="module")
def learned(objective, tmp_path_factory):
    """The run folder of a short search at all budgets."""
    out = tmp_path_factory.mktemp("learned") / "run"
    recorded(anew(objective, budget=RANGE), SearchSpec("dyna-ddpg", {"mutations": 20}, evaluations=8), out)
    return out


def recorded(own: Objective, search_spec: SearchSpec, out) -> None:
    run_search(own.spec, search_spec, out, progress=False, objective=own)


def env_at(objective: Objective, budget: float = 0.5) -> LayerRemovalEnv:
    """An environment of its own, with what `objective` has measured."""
    return LayerRemovalEnv.of(anew(objective, budget={"macs": budget}))


def rollout(env, policy, budget: float) -> str:
    observation, _ = env.reset(options={"budget": {"macs": budget}})
    done = False
    while not done:
        observation, _, done, _, info = env.step(policy(observation))
    return info["plan"]


@pytest.mark.parametrize("algorithm", [
    stable_baselines3.DDPG, stable_baselines3.SAC, stable_baselines3.PPO, sb3_contrib.TQC, sb3_contrib.CrossQ, sb3_contrib.ARS,
])  # fmt: skip
def test_a_saved_policy_acts_like_the_one_that_was_learned(algorithm, objective, tmp_path):
    env = LayerRemovalEnv.of(objective)
    model = algorithm("MlpPolicy", env, seed=1, device="cpu")
    if algorithm is sb3_contrib.ARS:  # which starts with zeros
        for weight in model.policy.parameters():
            weight.data.normal_()
    names = objective.embedding.names
    save_policy(Deterministic(model.policy), names, "relative", tmp_path / "policy.onnx")
    policy = load_policy(tmp_path / "policy.onnx", names, "relative")
    with pytest.raises(UserError, match="with relative actions, and these are absolute"):
        load_policy(tmp_path / "policy.onnx", names, "absolute")
    for seed in range(20):
        env.observation_space.seed(seed)
        observation = env.observation_space.sample()
        expected = model.predict(observation, deterministic=True)[0]
        np.testing.assert_allclose(policy(observation), expected, atol=1e-5)
    assert str(tmp_path.parent).encode() not in (tmp_path / "policy.onnx").read_bytes()


def test_a_policy_that_cannot_be_traced_costs_the_file_and_not_the_search(objective, tmp_path):
    class Untraceable(stable_baselines3.td3.policies.TD3Policy):
        def _predict(self, observation, deterministic=False):
            if not observation.sum().item() > -1e9:
                raise RuntimeError
            return super()._predict(observation, deterministic)

    with pytest.warns(UserWarning, match="the policy is not saved"):
        found = search(env_at(objective), "ddpg", 3, 0, tmp_path, progress=False, settings={"policy": Untraceable})
    assert len(found.trials) == 3 and not (tmp_path / "policy.onnx").exists()


def test_files_that_are_no_policy_or_saw_something_else_are_refused(learned, tmp_path):
    with pytest.raises(UserError, match="there is no policy"):
        load_policy(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"something else")
    with pytest.raises(UserError, match="is no policy of this package"):
        load_policy(tmp_path / "broken.onnx")
    model = onnx.load(learned / "policy.onnx")
    model.metadata_props[0].value = model.metadata_props[0].value.replace("budget latency", "budget patience")
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="budget latency, budget patience"):
        load_policy(tmp_path / "other.onnx", [name for name, _, _ in entries()])
    told = refused("policy", "apply", tmp_path / "none.onnx", "--out", tmp_path / "a")
    assert "there is no policy" in told and not (tmp_path / "a" / "trials.jsonl").exists()


def test_a_policy_decides_about_another_budget_and_a_teacher_that_it_has_never_seen(learned, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    layers = [nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]\n"
        "    return nn.Sequential(*layers)\n"
    )
    given = ("--teacher", f"{tmp_path / 'net.py'}:make", "--data", "digits", "--budget", "macs=0.4")
    works("policy", "apply", learned / "policy.onnx", *given, "--out", tmp_path / "a")
    trials = RunFolder(tmp_path / "a").trials()
    assert len(trials) == 10 and all(t.feasible and set(t.limits) == {"macs"} for t in trials)
    env = LayerRemovalEnv(teacher=given[1], data="digits")
    assert trials[0].plan.to_json() == rollout(env, load_policy(learned / "policy.onnx"), 0.4)
    works("policy", "apply", learned / "policy.onnx", *given, "--proposals", 1, "--out", tmp_path / "b")
    (alone,) = RunFolder(tmp_path / "b").trials()
    assert alone.plan == trials[0].plan


def test_what_a_policy_was_interrupted_in_goes_on_to_the_same_students(learned, tmp_path, monkeypatch):
    applying = ("policy", "apply", learned / "policy.onnx", "--budget", "macs=0.4", "--proposals", 4, *FEW, "--quiet", "--out")
    works(*applying, tmp_path / "whole")
    record = Recorder.record

    def interrupted(self, judged):
        recorded = record(self, judged)
        if self.played == 2:
            raise KeyboardInterrupt
        return recorded

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", interrupted)
        result = call(*applying, tmp_path / "run")
    assert result.exit_code == 130 and "the same command with --resume goes on from there" in result.output
    whole, begun = (RunFolder(tmp_path / name).trials() for name in ("whole", "run"))
    assert len(begun) == 2 and "add --resume to go on" in refused(*applying, tmp_path / "run")
    works(*applying, tmp_path / "run", "--resume")
    assert all(a.same(b) for a, b in zip(whole, RunFolder(tmp_path / "run").trials(), strict=True)) and len(whole) == 4


def test_noisy_students_follow_the_policys_own_student_and_repeat_with_the_seed(learned, objective):
    settings = {"file": str(learned / "policy.onnx")}

    def play(seed):
        return search(env_at(objective), "policy", 5, seed, progress=False, settings=settings)

    first = play(0)
    plans = [t.plan for t in first.trials]
    assert plans[0].to_json() == rollout(env_at(objective), load_policy(settings["file"]), 0.5) and len(set(plans)) > 1
    assert all(t.feasible for t in first.trials) and first.final_policy.plan == plans[0]
    assert [t.plan for t in play(0).trials] == plans != [t.plan for t in play(1).trials]


def test_a_search_that_goes_on_from_a_policy_begins_with_its_student(learned, objective):
    file = str(learned / "policy.onnx")
    expected = rollout(env_at(objective), load_policy(file), 0.5)
    found = search(env_at(objective), "dyna-ddpg", 5, 0, progress=False, settings={"start": file, "mutations": 20})
    assert found.trials[1].plan.to_json() == expected and len(found.trials) == 5
    with pytest.raises(UserError, match="mutations and start need model episodes; take dyna-ddpg"):
        search(env_at(objective), "ddpg", 4, progress=False, settings={"mutations": 10})
    with pytest.raises(UserError, match="mutations and start need model episodes; take dyna-ddpg"):
        search(env_at(objective), "dyna-ddpg", 4, progress=False, settings={"start": file, "model_episodes": 0})


@pytest.fixture(scope="module")
def searched(objective, chain, tmp_path_factory):
    """Run folders of searches at all budgets: two of one teacher, one of another."""
    runs = [tmp_path_factory.mktemp("searched") / name for name in "abc"]
    for seed, (run, own, evaluations) in enumerate(zip(runs, (objective, objective, chain), (30, 15, 15))):
        made = anew(own, teacher=own.spec.problem.teacher, budget=RANGE)
        recorded(made, SearchSpec("random", evaluations=evaluations, seed=seed), run)
    return runs


@pytest.fixture
def unsaved(monkeypatch):
    """Policies are learned and not written, which takes a second each."""
    monkeypatch.setattr(StableBaselinesAgent, "save_policy", lambda self, path: None)


def test_one_policy_is_learned_from_the_trials_of_several_searches_and_teachers(searched, tmp_path):
    file = tmp_path / "policy.onnx"
    options = [word for name, value in SHORT.items() for word in ("--agent-option", f"{name}={value}")]
    said = json.loads(works("policy", "learn", *searched, "--episodes", 60, "--seed", 1, *options, "--out", file, "--json"))
    a, b, c = map(str, searched)
    assert [(of["teacher"], of["runs"]) for of in said["gains"]] == [("resnet8-digits", [a, b]), ("vgg7-digits", [c])]
    assert min(of["gain"] for of in said["gains"]) > -0.2  # the allocation has 0
    assert said["policy"] == str(file)
    works("policy", "apply", file, "--budget", "macs=0.3", "--proposals", 1, *FEW, "--out", tmp_path / "run")
    assert RunFolder(tmp_path / "run").trials()[0].feasible


def test_the_same_seed_learns_the_same_policy(searched, tmp_path):
    learned = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        learn_policy(searched[1:2], tmp_path / name, agent_options=SHORT, episodes=20, seed=seed, progress=False)
        learned[name] = (tmp_path / name).read_bytes()
    assert learned["a"] == learned["b"] != learned["c"]


def test_runs_of_one_teacher_that_cannot_be_learned_from_together_have_a_gain_each(
    searched, objective, unsaved, tmp_path, monkeypatch
):
    a, b, c = tmp_path / "other", *map(str, searched[:2])
    other = anew(objective, evaluator={**QUICK["evaluator"], "validation_images": 50}, budget=RANGE)
    recorded(other, SearchSpec("random", evaluations=4), a)
    learning = ("policy", "learn", b, a, c, "--episodes", 20, "--out", tmp_path / "policy.onnx")
    made = []

    def once(*given, **options):
        made[:] = made or learn_policy(*given, **options)
        return made

    monkeypatch.setattr("compress_env.api.learn_policy", once)
    gains = json.loads(works(*learning, "--quiet", "--json"))["gains"]
    assert [(of["teacher"], of["runs"]) for of in gains] == [("resnet8-digits", [b, c]), ("resnet8-digits", [str(a)])]
    lines = works(*learning, "--quiet").splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == [f"resnet8-digits ({b}, {c})", f"resnet8-digits ({a})"]
    assert [f"{of['gain']:.0%}" for of in gains] == [line.split(": ")[1].split()[0] for line in lines[:2]]


def teachers_of(runs) -> list[SurrogateTeacher]:
    return [
        SurrogateTeacher(objective_of(f, False, budget={"macs": ["20%", "80%"]}), f.trials(), np.random.default_rng(0))
        for f in map(RunFolder, runs)
    ]


def test_offline_learning_is_an_environment_whose_uniform_students_gain_nothing(searched):
    teachers = teachers_of(searched[1:])
    check_env(SurrogateEnv(SurrogateObjective(teachers, 10), tqdm(disable=True)), skip_render_check=True)
    objective = SurrogateObjective(teachers, 10)
    env = SurrogateEnv(objective, tqdm(disable=True))
    met = set()
    for seed in range(10):
        env.reset(seed=seed)
        done, steps = False, 0
        while not done:
            _, gain, done, _, _ = env.step(np.zeros(2, np.float32))
            steps += 1
        assert gain == pytest.approx(0, abs=1e-6)
        met.add(steps)
    assert met == {t.objective.steps for t in teachers} and env.played == 10
    first = {name: set() for name in objective.embedding.names}
    for seed in range(20):
        for name, seen in zip(first, env.reset(seed=seed)[0]):
            first[name].add(float(seen))
    assert all(len(first[name]) > 10 for names in SHIFTS for name in names)
    assert all(len(first[name]) <= 2 for name in ("index", "share of MACs", "branch", "loss alone", "rank"))
    assert objective.score(objective.plans_of(lambda _: np.zeros(2))) == pytest.approx(0, abs=1e-6)


def test_teachers_that_observe_other_resources_are_not_learned_from_together(searched):
    (teacher,) = teachers_of(searched[1:2])
    other = copy(teacher)
    names = (*teacher.objective.embedding.names, "budget energy")
    other.objective = SimpleNamespace(embedding=SimpleNamespace(names=names))
    with pytest.raises(UserError, match="needs the same resources for each; 'budget energy' is not"):
        SurrogateObjective([teacher, other], 10)


def test_nothing_is_evaluated_and_no_data_is_loaded(searched, unsaved, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(searched[1], run)
    settings = json.loads((run / "run.json").read_text())
    settings["environment"]["problem"]["data"] = f"imagefolder:{tmp_path / 'gone'}"
    (run / "run.json").write_text(json.dumps(settings))
    monkeypatch.setattr(Objective, "evaluator", property(lambda self: pytest.fail("something is evaluated")))
    ((name, gain, _),) = learn_policy([run], tmp_path / "p.onnx", agent_options=SHORT, episodes=40, progress=False)
    assert name == "resnet8-digits" and gain > -0.2  # the allocation has 0
    with pytest.raises(UserError, match="gone"):
        objective_of(RunFolder(run), False).problem.data  # noqa: B018


def test_an_off_policy_agent_that_learns_offline_leaves_its_best_policy(searched, unsaved, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(offline, "BUDGETS", 25)
    monkeypatch.setattr(PolicySelection, "load_best", lambda self, actor: kept.extend(self.candidates))
    learn_policy(searched[:1], tmp_path / "p.onnx", agent="ddpg", episodes=60, progress=False)
    assert 1 < len(kept) and all(len(c.plans) == 1 for c in kept)


def test_agents_that_are_asked_learn_no_policy_offline(searched, tmp_path):
    with pytest.raises(UserError, match="the agent 'reinforce' leaves no policy"):
        learn(teachers_of(searched[1:2]), "reinforce", 10, 0, tmp_path / "p.onnx", progress=False)


def test_what_was_learned_until_ctrl_c_is_kept(searched, tmp_path, monkeypatch):
    step = SurrogateEnv.step

    def interrupted(self, action):
        if self.objective.played == 5:
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(SurrogateEnv, "step", interrupted)
    ((name, *_),) = learn_policy(searched[1:2], tmp_path / "new" / "p.onnx", episodes=100, progress=False)
    assert name == "resnet8-digits" and load_policy(tmp_path / "new" / "p.onnx")


def test_what_no_policy_can_be_learned_from_is_refused_before_anything_is_loaded(searched, tmp_path):
    told = refused("policy", "learn", tmp_path, "--out", tmp_path / "p.onnx")
    assert "no run.json" in told
    settings = json.loads((searched[0] / "run.json").read_text())
    settings["environment"] |= {"constraint": "soft", "actions": "absolute"}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert "soft limits" in refused("policy", "learn", tmp_path, "--out", tmp_path / "p.onnx")
    with pytest.raises(UserError, match="all episodes are against a model here"):
        learn_policy(searched[:1], tmp_path / "p.onnx", agent="ddpg", agent_options={"mutations": 9}, progress=False)
    told = refused("policy", "learn", searched[0], "--agent", "random", "--out", tmp_path / "p.onnx")
    assert "leaves no policy" in told and not (tmp_path / "p.onnx").exists()


def test_a_policy_is_put_beside_the_uniform_student_and_a_search_at_each_budget(learned, tmp_path):
    command = (
        "bench",
        "policy",
        learned / "policy.onnx",
        "--budget",
        0.5,
        "--budget",
        0.25,
        "--evaluations",
        5,
        "--out",
        tmp_path,
    )
    said = works(*command)
    lines = [line for line in said.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["MACs", "25%", "50%", "mean"]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()[1:]]
    assert [(r["budget"], r["kind"]) for r in rows] == [
        (b, k) for b in (0.5, 0.25) for k in ("uniform", "allocation", "policy", "best of ten", "search")
    ]
    mine = {r["kind"]: r for r in rows if r["budget"] == 0.25}
    env = LayerRemovalEnv(budget={"macs": 0.25})
    assert (
        mine["search"]["reward"] == search(env, "model", 5, 0, progress=False).best.reward >= mine["uniform"]["reward"]
    )
    alone = search(env, "policy", 1, progress=False, settings={"file": str(learned / "policy.onnx")}).best
    assert (mine["policy"]["metric"], mine["policy"]["reward"]) == (alone.evaluation.metric, alone.reward)
    assert mine["best of ten"]["reward"] >= mine["policy"]["reward"]
    assert mine["allocation"]["reward"] == search(env, "allocation", SOLUTIONS, progress=False).best.reward
    assert (tmp_path / "zero-shot.png").stat().st_size > 10_000
    shown = works("bench", "policy", "--show", tmp_path)
    assert shown.splitlines()[0] == "resnet8-digits" and set(lines) <= set(shown.splitlines())
    assert json.loads(works("bench", "policy", "--show", tmp_path, "--json")) == {"resnet8-digits": rows}
    assert works(*command) == said and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 11
    assert "no policy" in refused("bench", "policy", tmp_path / "none.onnx", "--out", tmp_path / "b")
