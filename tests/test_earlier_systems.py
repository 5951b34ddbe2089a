"""AMC and N2N by one word: their formulas, their states, their settings, and that all of it arrives wherever the word is given."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress_env
from benchmarks.stages import best_after, table
from compress_env.agents.amc import amc
from compress_env.agents.n2n import N2N
from compress_env.agents.saved import load_policy
from compress_env.agents.sb3.amc import FinalRewards
from compress_env.allocation.sensitivities import probes
from compress_env.api import learn_policy, run_search
from compress_env.bench import run as bench
from compress_env.cli.main import main
from compress_env.distill.short import reinitialise
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UnknownName, UserError
from compress_env.evaluation import Evaluation
from compress_env.objective import Objective
from compress_env.presets import PRESETS, preset, with_preset
from compress_env.problem import Problem
from compress_env.rewards import annealed, n2n
from compress_env.search import search
from compress_env.spec import EnvironmentSpec, EvaluatorSettings, ProblemSpec, SearchSpec
from compress_env.surgery.plan import Plan
from compress_env.walk.states import STATES, LayerState
from compress_env.walk.walk import ShareWalk

pytestmark = pytest.mark.usefixtures("one_problem")
QUICK = {"calibration_images": 64, "validation_images": 100}


def objective(name: str, **settings) -> Objective:
    """The digits as a system had its environment, judged on a few images."""
    evaluator = QUICK | ({"distill_steps": 4} if name == "n2n" else {})
    keywords = with_preset(name, {"budget": {"macs": 0.5}, "evaluator": evaluator, **settings})
    return Objective(EnvironmentSpec.of_keywords(**keywords))


@pytest.fixture(scope="module")
def small() -> Problem:
    """3 x 8 x 8 -> 8 channels -> 16 channels with stride 2 -> 10 outputs: 13,824 + 18,432 + 2,560 MACs."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    teacher = nn.Sequential(*layers).eval()
    return Problem.build(ProblemSpec(teacher=teacher, input_shape=(3, 8, 8), schedule="shrink", ranking="magnitude", min_width=0.2))


# AMC


def test_the_state_of_amc_has_its_eleven_entries(small):
    state, walk = LayerState(small, "amc"), ShareWalk(small, {"macs": 34816})
    assert state.names == ("t", "n", "c", "h", "w", "stride", "k", "FLOPs", "reduced", "rest", "previous")
    expected = [0, 8 / 16, 3 / 8, 1, 1, 1 / 2, 1, 13824 / 18432, 0, (18432 + 2560) / 34816, 1]
    assert state(walk) == pytest.approx(np.array(expected, np.float32))
    walk.step(0.0, 0.0)  # half way between 2 and 8 channels, the fifth of 8 being 1.6, of which 2 are the fewest
    assert walk.widths.tolist() == [5, 16]
    reduced = (3 * 13824 / 8 + 3 * 18432 / 8) / 34816
    assert state(walk) == pytest.approx(np.array([1, 1, 1, 1, 1, 1, 1, 1, reduced, 2560 / 34816, 5 / 8], np.float32))
    assert state.low.max() == 0 and state.high.min() == 1


def test_actions_are_shares_of_channels(small):
    def kept(sparsity: float) -> list[int]:
        walk = ShareWalk(small, {"macs": 34816})
        walk.step(0.0, sparsity)
        walk.step(0.0, sparsity)
        return walk.widths.tolist()

    assert (kept(-1), kept(0), kept(1)) == ([8, 16], [5, 9], [2, 3])  # 2 of 8, 3 of 16
    assert kept(-0.5) == [int(2 + 0.75 * 6), int(3 + 0.75 * 13)]


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_the_clamp_meets_the_budget_and_leaves_no_more_room_than_a_channel(small, budget):
    limit = budget * 34816
    walk = ShareWalk(small, {"macs": limit})
    walk.step(0.0, -1.0)
    first = int(walk.widths[0])

    def macs(a: int, b: int) -> float:
        return 27 * 64 * a + 9 * 16 * a * b + 160 * b

    assert macs(first, 3) <= limit and (first == 8 or macs(first + 1, 3) > limit)  # algorithm 1: the rest at its smallest
    walk.step(0.0, -1.0)
    last = int(walk.widths[1])
    assert macs(first, last) == walk.usage["macs"] <= limit and (last == 16 or macs(first, last + 1) > limit)


def test_the_settings_of_ddpg_arrive():
    judge = objective("amc")
    agent = amc(judge, 800, 3)
    agent.build(LayerRemovalEnv.of(judge))
    model = agent.model
    assert (model.gamma, model.tau, model.batch_size, model.learning_starts) == (1.0, 0.01, 64, 100 * judge.steps)
    assert (model.buffer_size, model.gradient_steps, model.train_freq.frequency) == (100 * judge.steps, judge.steps, 1)
    assert model.action_space.shape == (1,) and model.observation_space.shape == (11,)
    sizes = [(m.in_features, m.out_features) for m in model.actor.mu if isinstance(m, nn.Linear)]
    assert sizes == [(11, 300), (300, 300), (300, 1)] and len(model.critic.q_networks) == 1
    model._update_learning_rate([model.actor.optimizer, model.critic.optimizer])
    assert model.actor.optimizer.param_groups[0]["lr"] == 1e-4 and model.critic.optimizer.param_groups[0]["lr"] == 1e-3
    deviations = []
    for model._episode_num in (0, 100, 101, 110):
        deviations.append(model.deviation)
    assert deviations == pytest.approx([0.5, 0.5, 0.5 * 0.95, 0.5 * 0.95**10])
    short = amc(judge, 40, 3).settings
    assert short["warmup"] == 10 and short["noise_decay"] ** 30 == pytest.approx(0.95**300)


def test_explored_actions_are_truncated_not_clipped():
    judge = objective("amc")
    agent = amc(judge, 8, 0, warmup=0)
    agent.build(LayerRemovalEnv.of(judge))
    agent.model.policy.actor.mu[-2].bias.data.fill_(5.0)  # the actor's own action is near 1
    agent.model._last_obs = np.zeros((1, 11), np.float32)
    agent.model.num_timesteps = 1
    with torch.random.fork_rng():
        drawn = np.array([agent.model._sample_action(0)[1].item() for _ in range(200)])
    assert drawn.min() < 0 and 0.15 < drawn.mean() < 0.4 and (drawn < 1).all()  # clipped ones would be 1 in half of the cases


def test_every_transition_has_the_reward_of_the_end_less_a_moving_average():
    space = gym.spaces.Box(0, 1, (1,))
    buffer = FinalRewards(10, space, space, momentum=0.5)
    for episode_reward in (-0.4, -0.2):
        for step in range(3):
            zero, done = np.zeros(1), step == 2
            buffer.add(zero, zero, zero, np.array([episode_reward * done]), np.array([done]), [{}])
    assert buffer.rewards[:6, 0].tolist() == pytest.approx([-0.4] * 3 + [-0.2] * 3)
    first = buffer._get_samples(np.arange(6)).rewards
    assert first.flatten().tolist() == pytest.approx([-0.1] * 3 + [0.1] * 3) and buffer.baseline == pytest.approx(-0.3)
    buffer._get_samples(np.arange(3, 6))
    assert buffer.baseline == pytest.approx(-0.3 + 0.5 * (-0.2 + 0.3))


# N2N


def test_the_reward_of_n2n_and_its_annealed_constraint():
    usage = {"params": 250.0}
    half_as_good = Evaluation({"accuracy": 0.45}, None, usage, {"accuracy": 0.9}, {"params": 1000.0})
    assert n2n(half_as_good, {}) == pytest.approx(0.75 * 1.25 * 0.5)
    assert annealed(0.6, True, 9) == 0.6
    assert [annealed(0.6, False, update) for update in (0, 15, 40)] == pytest.approx([0.6, -1, -1])
    share = (1 - 5 / 15) ** 4
    assert annealed(0.6, False, 5) == pytest.approx(share - 1 + 0.6 * share)


def test_the_state_of_n2n(small):
    assert LayerState(small, "n2n")(ShareWalk(small, {"macs": 34816})).tolist() == [1, 1, 0.5, 1, 0.5, 0, 0]
    state = LayerState(objective("n2n").problem, "n2n")
    assert len(state.names) == 7 and state._table[:3, 5:].tolist() == [[1, 1]] * 3  # three residual branches to remove


def test_the_first_stage_only_removes_and_the_second_shrinks_its_best():
    judge = objective("n2n")
    found = search(judge, "n2n", 31, seed=0, progress=False)
    first, second = found.trials[:16], found.trials[16:]
    assert first[0].plan.removed == first[0].plan.widths == () and first[0].reward == 0  # the teacher itself
    assert all(t.plan.widths == () for t in first) and len({t.plan.removed for t in first}) > 2
    best = max(first, key=lambda t: (t.feasible, t.reward))
    assert {t.plan.removed for t in second} == {best.plan.removed} and len({t.plan.widths for t in second}) > 5
    again = search(objective("n2n"), "n2n", 31, seed=0, progress=False)
    assert [t.plan for t in again.trials] == [t.plan for t in found.trials]
    assert [t.reward for t in again.trials] == [t.reward for t in found.trials]


def test_students_above_soft_limits_are_punished_more_and_more():
    judge = objective("n2n", budget={"macs": 0.2})
    seen = []

    class Noting(N2N):
        """Says what it has learned from."""

        def tell(self, trials):
            seen.extend(trials)
            super().tell(trials)

    with pytest.MonkeyPatch.context() as patch:
        calls = []
        patch.setattr("compress_env.agents.n2n.annealed", lambda *given: calls.append(given) or annealed(*given))
        search(judge, Noting, 12, progress=False, settings={"rollouts": 2, "annealing": 3})
    assert [call[1] for call in calls] == [t.feasible for t in seen[1:]] and not all(call[1] for call in calls)
    assert [call[2] for call in calls[:5]] == [0, 0, 1, 1, 2] and {call[3] for call in calls} == {3}


def test_new_weights_are_at_random_always_the_same_and_alone():
    linear, norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
    norm.running_mean.fill_(2.0)
    student, before = nn.Sequential(linear, norm), linear.weight.clone()
    state = torch.get_rng_state()
    reinitialise(student)
    once = linear.weight.clone()
    assert not once.equal(before) and norm.running_mean.eq(0).all() and torch.get_rng_state().equal(state)
    reinitialise(student)
    assert linear.weight.equal(once) and once.abs().max() <= 0.5  # 1 / sqrt(inputs)
    own = objective("n2n")
    plan = own.problem.graph.canonical(frozenset(), own.problem.graph.full)
    assert own.evaluator(plan).metric < 0.9
    assert objective("n2n", evaluator=QUICK | {"distill_steps": 4, "inherit": True}).evaluator(plan).metric > 0.9
    with pytest.raises(UserError, match="give distill_steps=100 and refit=false, too"):
        EvaluatorSettings(inherit=False)


# One word


@pytest.mark.parametrize("name", PRESETS)
def test_a_system_by_one_word_at_the_command_line_and_in_python_is_the_same(name, tmp_path):
    steps = ["--evaluator", "distill_steps=3"] if name == "n2n" else []
    command = ["search", "--agent", name, "--evaluations", "5", "--finetune-epochs", "0", "--out", str(tmp_path / "a"), *steps]
    done = CliRunner().invoke(main, [*command, "--evaluator", "validation_images=100", "--budget", "macs=0.4"])
    assert done.exit_code == 0, done.output
    made = json.loads((tmp_path / "a" / "run.json").read_text())["environment"]
    keywords = preset(name)
    for key in ("actions", "observation", "reward", "constraint", "shaping"):
        assert made[key] == keywords[key]
    for key in ("schedule", "min_width", "ranking"):
        assert made["problem"][key] == keywords[key]
    own = {**keywords["evaluator"], "validation_images": 100, **({"distill_steps": 3} if steps else {})}
    assert {key: made["evaluator"][key] for key in own} == own and made["budget"] == {"macs": 0.4}
    assert not (tmp_path / "a" / "sensitivities.json").exists()
    env = gym.make("LayerRemoval-v0", budget={"macs": 0.4}, **{**keywords, "evaluator": own})
    assert env.observation_space.shape == (len(STATES[name]),)
    trials = search(env, name, 5, 0, progress=False).trials
    known = [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]
    assert [t.to_json()["plan"] for t in trials] == [t["plan"] for t in known] and [t.reward for t in trials] == [
        t["reward"] for t in known
    ]


def test_what_is_given_comes_before_what_the_word_stands_for():
    given = with_preset("amc", {"reward": "amc_flops", "evaluator": {"distill_steps": 7}})
    assert (given["reward"], given["observation"], given["evaluator"]) == ("amc_flops", "amc", {"refit": True, "distill_steps": 7})
    assert with_preset("ddpg", {"reward": "n2n"}) == {"reward": "n2n"}
    assert preset("amc")["evaluator"]["distill_steps"] == 0  # what one call changed, another does not see
    spec = EnvironmentSpec.of_keywords(**with_preset("amc", {}))
    assert spec.problem.min_width == 0.2


def test_an_unknown_system_is_told_the_others():
    with pytest.raises(UnknownName, match="known: amc, n2n"):
        compress_env.preset("eas-paper")
    with pytest.raises(UnknownName, match="did you mean 'amc'"):
        compress_env.preset("amd")
    done = CliRunner().invoke(main, ["search", "--agent", "amcc", "--out", "never"])
    assert done.exit_code == 2 and "did you mean 'amc'" in done.output


def test_a_benchmark_judges_systems_alike(tmp_path, monkeypatch):
    monkeypatch.setattr("compress_env.search.run._save_policy", lambda *_: None)
    monkeypatch.setattr(bench, "probes", lambda problem: probes(problem)[:6])
    common = bench.objective("digits-50", None)
    for agent in ("amc", "n2n 'evaluator={\"distill_steps\": 3}'"):
        run = bench.one("digits-50", agent, 0, 4, None, tmp_path / agent.split()[0])
        assert run.measured == 0 and run.plan and len(run.best) == 4 + 6  # those that sensitivities would have taken
        evaluation = common.evaluator(Plan.from_json(run.plan))
        assert run.metric[-1] == evaluation.metric and run.best[-1] == common.reward(evaluation, {"macs": 1e9})[0]


def test_the_table_of_stages_takes_the_best_within_the_budget_of_each(tmp_path):
    judge = objective("n2n")
    trials = search(judge, "n2n", 9, seed=0, out=tmp_path / "runs" / "digits-50" / "n2n" / "0", progress=False).trials
    within = [t for t in trials if t.feasible]
    first = max((t for t in within if t.index < 4), key=lambda t: t.reward, default=None)
    assert best_after(trials, 1) == first and best_after(trials, 2) == max(within, key=lambda t: t.reward)
    line = table(tmp_path).splitlines()[2]
    last = best_after(trials, 2)
    assert line.startswith("| digits-50, `n2n` | 1 | ") and line.endswith(f"{last.reward:.3f} |")
    assert f"{100 * last.evaluation.metric:.1f} % | {1 / last.evaluation.size:.1f}x" in line


def test_a_policy_of_ours_is_learned_from_the_trials_of_amc(tmp_path):
    made = EnvironmentSpec.of_keywords(**with_preset("amc", {"evaluator": QUICK}))
    run_search(made, SearchSpec("amc", evaluations=6), tmp_path / "a", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress_env.agents.offline.BUDGETS", 4)
        learn_policy([tmp_path / "a"], tmp_path / "p.onnx", episodes=8, progress=False)
    assert load_policy(tmp_path / "p.onnx", objective("amc", observation="embedding").embedding.names, "relative")
