"""Presets of rl-zoo3: the settings of our agents, in files that rl-zoo3 reads."""

from __future__ import annotations

from argparse import Namespace
from importlib.resources import files

import gymnasium as gym
import pytest
import stable_baselines3
import yaml
from click.testing import CliRunner
from stable_baselines3.common.utils import FloatSchedule

from compress_env.agents import zoo

PRESETS = files("compress_env.agents") / "presets"
COMPARED = ("gamma", "n_steps", "batch_size", "buffer_size", "learning_starts", "gradient_steps", "tau", "n_epochs", "gae_lambda",
            "ent_coef", "policy_kwargs", "n_delta", "n_top", "train_freq", "normalize_advantage")  # fmt: skip


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_presets_that_are_shipped_are_the_agents_settings(digits_env, name):
    assert (PRESETS / f"{name}.yml").read_text() == zoo.preset(name, digits_env, zoo.EPISODES), (
        "the agent has changed; run python -m compress_env.agents.zoo --out agents/presets"
    )


def test_a_preset_says_what_the_agent_really_uses(digits_env):
    found = yaml.safe_load((PRESETS / "td3.yml").read_text())
    assert set(found) == set(zoo.IDS) and all(i in gym.registry for i in found)
    own = found[zoo.IDS[0]]
    agent = zoo.built("td3", digits_env, zoo.EPISODES)
    assert own == found[zoo.IDS[1]] and own["n_timesteps"] == zoo.EPISODES * digits_env.objective.steps
    assert isinstance(agent.model, stable_baselines3.TD3) and agent.model.gradient_steps == own["gradient_steps"]
    assert own["noise_std"] == pytest.approx((0.4 * 0.1) ** 0.5)
    assert agent.model.lr_schedule(1.0) == own["learning_rate"] and agent.model.tau == own["tau"]


def test_presets_for_other_searches_are_written(tmp_path):
    done = CliRunner().invoke(zoo.main, ["--episodes", "40", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = {name: yaml.safe_load((tmp_path / f"{name}.yml").read_text())[zoo.IDS[0]] for name in zoo.NAMES}
    assert {own["n_timesteps"] for own in found.values()} == {40 * 9} and found["ddpg"]["learning_starts"] == 8 * 9


@pytest.mark.parametrize("name", zoo.NAMES)
def test_rl_zoo3_makes_the_same_algorithm_of_a_preset(digits_env, tmp_path, name):
    manager = pytest.importorskip("rl_zoo3.exp_manager")
    made = manager.ExperimentManager(
        Namespace(), name, zoo.IDS[0], str(tmp_path), config=str(PRESETS / f"{name}.yml"), eval_freq=-1, verbose=0, device="cpu"
    )  # fmt: skip
    model, _ = made.setup_experiment()
    own = zoo.built(name, digits_env, zoo.EPISODES)
    assert type(model) is type(own.model) and made.n_timesteps == zoo.EPISODES * own.steps
    for attribute in COMPARED:
        assert getattr(model, attribute, None) == getattr(own.model, attribute, None), attribute
    assert model.lr_schedule(0.5) == FloatSchedule(own.model.learning_rate)(0.5)
    assert model.env.envs[0].get_wrapper_attr("scale") == own.reward_scale
