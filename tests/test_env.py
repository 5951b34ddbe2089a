"""The environment keeps Gymnasium's and Stable-Baselines3's contracts, over whole episodes."""

from __future__ import annotations

import json
import pickle
import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.env_util import make_vec_env

import compress_env
from compress_env import evaluator, problem
from compress_env.allocation import sensitivities
from compress_env.decisions import RemoveBlock, ShrinkGroup
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import InfeasibleBudget, UserError
from compress_env.resources import base as cost_model_base
from compress_env.rewards import FAILED
from compress_env.surgery.plan import Plan
from compress_env.walk.observation import entries

VARIANTS = [
    {},
    {"schedule": "joint", "budget": {"params": 0.4, "memory": "60%"}},
    {"schedule": "removal", "budget": {"macs": [0.3, 0.9]}},
    {"schedule": "shrink", "constraint": "soft", "reward": "n2n"},
    {"schedule": "two-step", "actions": "absolute", "shaping": False},
]
INFO = {"metrics", "teacher_metrics", "kl", "reward_terms", "usage", "budget", "is_success", "plan", "failed", "repeated"}
CHECK = {"evaluator": {"calibration_images": 64, "validation_images": 100}}


def make(**kwargs) -> gym.Env:
    return gym.make("LayerRemoval-v0", **{**CHECK, **kwargs})


def episode(env: gym.Env, rng: np.random.Generator | None = None, seed: int | None = None):
    """Observations, sum of rewards and info of one whole episode; action 0 without a generator."""
    observation, info = env.reset(seed=seed)
    assert info == {}
    observations, done, total = [observation], False, 0.0
    while not done:
        action = np.zeros(2, np.float32) if rng is None else rng.uniform(-1, 1, 2).astype(np.float32)
        observation, reward, done, truncated, info = env.step(action)
        observations.append(observation)
        assert type(reward) is float and type(done) is bool and truncated is False
        assert done or info == {}
        assert done or env.unwrapped.objective.spec.shaping or reward == 0.0
        total += reward
    return observations, total, info


@pytest.mark.parametrize("name", [name for name in compress_env.ENV_IDS if not name.startswith("Network")])
@pytest.mark.parametrize("kwargs", VARIANTS, ids=lambda k: k.get("schedule", "default"))
def test_both_checkers_pass_without_a_warning(name, kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = kwargs if "Planted" in name else {**CHECK, **kwargs}
        env = gym.make(name, **settings, render_mode="rgb_array")
        check_env(env.unwrapped, skip_render_check=bool(kwargs))  # which makes it anew for each mode
        check_env_sb3(env.unwrapped)


def test_it_is_made_by_name_without_arguments_and_by_module_and_name():
    assert gym.make("LayerRemoval-v0").unwrapped.objective.steps == 9
    assert gym.make("compress_env:LayerRemoval-v0").unwrapped.objective.steps == 9


@pytest.mark.parametrize("kwargs", VARIANTS, ids=lambda k: k.get("schedule", "default"))
def test_whole_episodes_have_a_fixed_length_bounded_observations_and_the_promised_info(kwargs):
    env, rng = make(**kwargs), np.random.default_rng(0)
    lengths = set()
    for _ in range(6):
        observations, reward, info = episode(env, rng)
        lengths.add(len(observations) - 1)
        assert all(env.observation_space.contains(o) for o in observations)
        assert info.keys() == INFO
        assert type(info["kl"]) is float and info["kl"] >= 0
        assert 0 < info["metrics"]["accuracy"] <= 1 and info["metrics"].keys() == info["teacher_metrics"].keys()
        for key in ("metrics", "teacher_metrics", "usage", "budget", "reward_terms"):
            assert all(type(v) is float for v in info[key].values())
        assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-9)
        assert type(info["is_success"]) is bool
        assert kwargs.get("constraint") == "soft" or info["is_success"]
        assert Plan.from_json(info["plan"]).to_json() == info["plan"]
    assert lengths == {env.unwrapped.objective.steps}


def test_a_finished_episode_has_to_be_reset():
    env = make().unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    episode(env)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))


def test_the_same_seed_and_actions_give_the_same_episode_in_another_environment():
    first, second = make(budget={"macs": [0.3, 0.8]}), make(budget={"macs": [0.3, 0.8]})
    a = episode(first, np.random.default_rng(1), seed=7)
    b = episode(second, np.random.default_rng(1), seed=7)
    assert all(np.array_equal(x, y) for x, y in zip(a[0], b[0]))
    assert a[1:] == b[1:]
    assert first.unwrapped.walk.limits != {}
    check_environments_match(first, second, num_steps=30, seed=3)


def test_a_pickled_environment_plays_the_same_episode():
    env = make()
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    a, b = episode(env, np.random.default_rng(2), seed=1), episode(copy, np.random.default_rng(2), seed=1)
    assert all(np.array_equal(x, y) for x, y in zip(a[0], b[0])) and a[1:] == b[1:]


def test_the_spec_is_json():
    env = make(budget={"macs": 0.4})
    spec = json.loads(env.spec.to_json())
    assert spec["id"] == "LayerRemoval-v0" and spec["max_episode_steps"] is None
    assert spec["kwargs"]["budget"] == {"macs": 0.4}


def test_vectorised_info_keeps_floats():
    envs = gym.make_vec("LayerRemoval-v0", num_envs=2, vectorization_mode="sync", **CHECK)
    envs.reset(seed=0)
    done, total = np.array([False]), np.zeros(2)
    while not done.any():
        _, rewards, done, _, info = envs.step(np.zeros((2, 2), np.float32))
        total += rewards
    assert info["metrics"]["accuracy"].dtype == np.float64 and info["usage"]["macs"].dtype == np.float64
    assert total[0] == total[1] > 0.9


def test_stable_baselines3_makes_a_vector_of_them():
    envs = make_vec_env("LayerRemoval-v0", n_envs=2, env_kwargs=CHECK)
    envs.reset()
    for _ in range(9):
        _, _, done, infos = envs.step(np.zeros((2, 2), np.float32))
    assert done.all() and infos[0]["is_success"] and infos[0]["episode"]["l"] == 9


def test_a_whole_episode_touches_no_global_random_state_and_no_torch_setting():
    env = make(evaluator={**CHECK["evaluator"], "distill_steps": 3})
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    settings = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    episode(env, np.random.default_rng(0), seed=0)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == settings


def test_the_teacher_is_the_same_after_episodes():
    env = make().unwrapped
    module = env.objective.problem.teacher.module
    before = {k: v.clone() for k, v in module.state_dict().items()}
    for i in range(3):
        episode(env, np.random.default_rng(i))
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in before.items())


def test_usage_is_that_of_the_student_that_the_plan_builds():
    env = make().unwrapped
    _, _, info = episode(env, np.random.default_rng(4))
    assert env.objective.problem.built(Plan.from_json(info["plan"])).usage == info["usage"]


def test_a_plan_is_built_and_judged_once_and_said_to_be_repeated(monkeypatch):
    env, calls = make(), []
    for owner, name in ((evaluator, "predict"), (problem, "build_student")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    monkeypatch.setattr(cost_model_base, "build_student", problem.build_student)
    first = episode(env)[2]
    assert sorted(calls) == ["build_student", "predict"]
    second = episode(env)[2]
    assert len(calls) == 2
    assert not first.pop("repeated") and second.pop("repeated") and first == second


def test_a_failed_student_has_the_defined_reward_and_the_search_goes_on(monkeypatch):
    env = make()

    def fail(*_, **__):
        raise RuntimeError("it does not run")

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "predict", fail)
        _, reward, info = episode(env)
    assert reward == pytest.approx(FAILED, abs=1e-9) and info["metrics"] == {"accuracy": 0.0} and info["kl"] == float("inf")
    assert info["failed"] == "RuntimeError: it does not run"
    assert info["reward_terms"] == {"score": 0.0, "resource": 0.0, "failed": FAILED}
    assert episode(env, np.random.default_rng(0))[1] > 0


def test_a_student_that_diverges_in_distillation_really_fails(monkeypatch):
    monkeypatch.setattr(sensitivities, "ENOUGH", 1000)  # measuring would end before there is an environment
    env = make(evaluator={**CHECK["evaluator"], "distill_steps": 5, "lr": 1e30})
    with pytest.warns(UserWarning, match="sensitivities are measured with could not be evaluated; .*Diverged"):
        _, reward, info = episode(env)
    assert reward == pytest.approx(FAILED, abs=1e-9) and "Diverged" in info["failed"]


def test_distillation_improves_on_surgery_alone():
    def accuracy(**settings) -> float:
        return make(evaluator=settings).unwrapped.objective.evaluator(plan).metric

    plan = Plan.from_json(episode(make(budget={"macs": 0.3}))[2]["plan"])
    before = accuracy(refit=False)
    assert accuracy(refit=False, distill_steps=40) > before + 0.1 and accuracy() > before + 0.1


def test_the_budget_of_an_episode_can_be_set_at_reset_and_is_in_the_observation():
    env = make()
    names = [n for n, _, _ in entries()]
    observation, _ = env.reset(options={"budget": {"macs": 0.3}})
    assert observation[names.index("budget macs")] == pytest.approx(0.3)
    assert observation[names.index("budget params")] == 1
    with pytest.raises(InfeasibleBudget):
        env.reset(options={"budget": {"macs": 0.0001}})
    with pytest.raises(UserError, match="did you mean 'budget'"):
        env.reset(options={"budgets": {}})
    for limits, message in (({"mac": 1e5}, "a limit on mac has to be"), ({"macs": "50%"}, "positive number .* '50%' for macs")):
        with pytest.raises(UserError, match=message):
            env.reset(options={"limits": limits})


def test_a_range_of_budgets_is_sampled_anew_and_kept():
    env = make(budget={"macs": [0.3, 0.9]})
    drawn = set()
    for i in range(5):
        _, _, info = episode(env, seed=i)
        share = info["budget"]["macs"] / env.unwrapped.objective.problem.cost_model.teacher["macs"]
        assert 0.3 <= share <= 0.9 and info["usage"]["macs"] <= info["budget"]["macs"]
        drawn.add(share)
    assert len(drawn) == 5


def test_soft_limits_punish_the_excess():
    env = make(constraint="soft", budget={"macs": 0.5}, shaping=False)
    env.reset()
    for _ in range(9):
        _, reward, _, _, info = env.step(np.array([1, -1], np.float32))
    assert info["usage"]["macs"] == 2 * info["budget"]["macs"] and not info["is_success"]
    assert info["reward_terms"]["resource"] == -1.0
    assert reward == pytest.approx(info["reward_terms"]["score"] - 1) and info["reward_terms"]["score"] > 0.99


def test_pictures_and_tables_show_the_network():
    text = make(render_mode="ansi", actions="absolute")
    text.reset()
    before = text.render()
    text.step(np.array([-1, 0], np.float32))
    after = text.render()
    assert "stages.0.0.conv1" in before and "removed" not in before and "removed" in after and "macs" in after
    image = make(render_mode="rgb_array", actions="absolute")
    image.reset()
    first = image.render()
    image.step(np.array([-1, 0], np.float32))
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert (image.render() != first).any()
    image.close()
    image.close()


@pytest.mark.parametrize("actions", ["relative", "absolute"])
def test_observations_tell_what_was_done_and_what_it_is_predicted_to_lead_to(actions):
    env = make(actions=actions)
    objective, names = env.unwrapped.objective, [n for n, _, _ in entries()]
    first, _ = env.reset()
    assert len(first) == len(names)
    assert first[names.index("pass")] == 0 and first[names.index("left to decide")] > 0.9
    observation = env.step(np.array([-1, 0], np.float32))[0]
    assert observation[names.index("previous keep")] == -1
    completed = objective.completed(env.unwrapped.walk)
    assert observation[names.index("predicted score")] == np.float32(completed.score) <= first[names.index("predicted score")]
    if actions == "absolute":
        assert objective.problem.decisions[0].target in completed.plan.removed
        assert observation[names.index("predicted score")] < first[names.index("predicted score")] - 0.01
    used = completed.usage["macs"] / completed.teacher_usage["macs"]
    assert observation[names.index("spent macs")] == np.float32(used) <= observation[names.index("budget macs")] == 0.5
    env.step(np.array([1, 0], np.float32))
    observation = env.step(np.array([1, 0], np.float32))[0]
    assert observation[names.index("pass")] == 1 and observation[names.index("previous keep")] == 1
    observation = env.step(np.array([0, -1], np.float32))[0]
    assert observation[names.index("left to decide")] < first[names.index("left to decide")]
    assert observation[names.index("previous sparsity")] == -1 and observation[names.index("previous keep")] == 0


def test_observations_tell_what_leads_round_a_layer_and_what_is_known_of_it_beforehand():
    names = [n for n, _, _ in entries()]

    def told(entry: str, teacher: str) -> dict[tuple[type, str], float]:
        env = make(teacher=teacher).unwrapped
        observations, _, _ = episode(env)
        decided = [(type(d), d.target) for d in env.objective.problem.decisions]
        return {d: float(o[names.index(entry)]) for d, o in zip(decided, observations)}

    branch = told("branch", "resnet8-digits")
    assert branch[RemoveBlock, "stages.1.0"] == branch[ShrinkGroup, "stages.1.0.conv1"] == 1
    assert branch[ShrinkGroup, "conv1"] == branch[ShrinkGroup, "stages.1.0.conv2"] == 0
    assert not any(told("branch", "vgg7-digits").values())
    objective = make().unwrapped.objective
    reference = objective.reference(objective.budgets(1)[0]).allocation
    kept, alone, rank = (told(entry, "resnet8-digits") for entry in ("allocation", "loss alone", "rank"))
    for block, kl in objective.sensitivities.blocks.items():
        assert alone[RemoveBlock, block] == pytest.approx((4 + np.log10(kl)) / 5, abs=1e-6)
        assert kept[RemoveBlock, block] == (block not in reference.removed)
    for decision, own in ((d, [v for (kind, _), v in rank.items() if kind is d]) for d in (RemoveBlock, ShrinkGroup)):
        assert sorted(own) == pytest.approx(np.arange(len(own)) / len(own)), decision
    graph = objective.problem.graph
    shares = {name: width / size for name, width, size in zip(graph.groups, reference.widths, graph.full)}
    alive = graph.view(reference.removed).alive
    expected = {n: s if a else 0.0 for (n, s), a in zip(shares.items(), alive)}
    assert {n: v for (kind, n), v in kept.items() if kind is ShrinkGroup} == pytest.approx(expected)


def test_the_documented_observation_table_is_the_real_one():
    doc = type(make().unwrapped).__doc__
    assert f"Box(0, 1, ({len(entries())},), float32)" in doc
    for i, (name, low, _) in enumerate(entries()):
        assert f"| {i} | {name} | {low} | 1 |" in doc
    for heading in ("Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End",
                    "Information", "Arguments", "Version History", "References"):  # fmt: skip
        assert f"## {heading}\n" in doc


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"teacher": "resnet8-digit"}, "did you mean 'resnet8-digits'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"reward": "n2m"}, "did you mean 'n2n'"),
        ({"schedule": "two-steps"}, "did you mean 'two-step'"),
        ({"constraint": "harder"}, "did you mean 'hard'"),
        ({"evaluator": {"distil_steps": 3}}, "distill_steps"),
        ({"evaluator": {"lr": 0}}, "lr must be positive, got 0"),
        ({"teacher": torch.nn.Linear(4, 2)}, "needs data"),
        ({"render_mode": "human"}, "render mode"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LayerRemovalEnv(**kwargs)


def test_actions_that_are_no_numbers_are_refused():
    env = make().unwrapped
    env.reset()
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([np.nan, 0], np.float32))
