"""`LayerRemoval-v0`: compressing a network as a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import EzPickle

from compress_env import rewards
from compress_env.contexts import one_thread
from compress_env.data import load_data
from compress_env.devices import usable
from compress_env.distill.evaluator import EvaluationFailed, Evaluator, EvaluatorSettings, fastest_device
from compress_env.envs import render
from compress_env.errors import UserError
from compress_env.registry import unknown
from compress_env.resources.base import RESOURCES
from compress_env.resources.budget import parse_budget
from compress_env.resources.cost_model import CostModel
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.rewards import REWARDS, Outcome
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking.reconstruction import rank_by_reconstruction
from compress_env.surgery.redundancy import block_redundancy
from compress_env.surgery.trace import trace
from compress_env.teachers import load_teacher
from compress_env.walk.observation import Embedding
from compress_env.walk.walk import Problem, Walk

SELECTION_IMAGES = 512
"""Training images that channels are ranked on, once; judging a student takes fewer, since it is done for each."""


class LayerRemovalEnv(gym.Env, EzPickle):
    """
    ## Description
    A trained *teacher* network is walked over twice: first the agent decides for each block (a residual branch, a layer of a
    chain) whether it is **removed**, then for each group of tied channels of what is left how far it **shrinks**. At the end the
    student is built with the teacher's weights, refitted, judged on validation images and counted. Every action is clamped so
    that the budget stays within reach: a finished student meets every limit, counted on the module that was really built.

    ## Action Space
    `Box(-1, 1, (2,), float32)`. Each step reads the entry that it needs and ignores the other.

    | Num | Action   | -1 | 0 | 1 |
    |-----|----------|----|---|---|
    | 0   | keep     | remove the block (as everything below 0) | keep it | keep it |
    | 1   | sparsity | keep all channels | the share that, for all open groups alike, meets the budget | `min_width` of the channels |

    ## Observation Space
    `Box(0, 1, (31,), float32)`, the layer embedding; the previous actions lie in [-1, 1]. Two more entries for each resource that
    is registered. `compress_env.walk.observation.entries()` gives name, minimum and meaning of each.

    | Num | Observation | Min | Max | Meaning |
    |-----|-------------|-----|-----|---------|
    | 0 | pass | 0 | 1 | 0 while layers are removed, 1 while they are shrunk |
    | 1 | progress | 0 | 1 | steps taken / steps of the episode |
    | 2 | void | 0 | 1 | 1 if the layer went with a block that was removed before; the action then has no effect |
    | 3 | convolution | 0 | 1 | share of the target's layers that are dense convolutions |
    | 4 | depthwise | 0 | 1 | share that are depthwise or grouped convolutions |
    | 5 | linear | 0 | 1 | share that are linear layers |
    | 6 | branch | 0 | 1 | 1 if the target is a residual branch, or lies within one; 0 if all that comes after depends on it |
    | 7 | explained | 0 | 1 | of what a block puts out, the share that is known without it; of a group, what half of its channels tell |
    | 8 | index | 0 | 1 | position of the target's first layer in the network |
    | 9 | channels in | 0 | 1 | log2(1 + channels into the first layer) / 12 |
    | 10 | channels out | 0 | 1 | log2(1 + channels out of the last layer) / 12 |
    | 11 | kernel | 0 | 1 | largest kernel size / 7, at most 1 |
    | 12 | stride | 0 | 1 | log2 of the largest stride / 3, at most 1 |
    | 13 | groups | 0 | 1 | log2(groups) / 12 of the layer with most |
    | 14 | spatial size in | 0 | 1 | log2(1 + positions per channel into the first layer) / 20 |
    | 15 | spatial size out | 0 | 1 | log2(1 + positions per channel out of the last layer) / 20 |
    | 16 | share of MACs | 0 | 1 | the target's MACs / the teacher's |
    | 17 | share of params | 0 | 1 | the target's parameters / the teacher's |
    | 18 | removed so far | 0 | 1 | share of the teacher's MACs saved by the decisions taken |
    | 19 | left to decide | 0 | 1 | share of the teacher's MACs in layers that are still undecided |
    | 20 | uniform keep ratio | 0 | 1 | share of channels that all undecided groups could keep together; sparsity 0 gives it |
    | 21 | previous keep | -1 | 1 | the last removal as executed: -1 removed, 1 kept, 0 if the last step was none |
    | 22 | previous sparsity | -1 | 1 | the last sparsity as executed, after the clamp |
    | 23 | budget latency | 0 | 1 | limit on latency as a share of the teacher's, at most 1; 1 if there is none |
    | 24 | budget macs | 0 | 1 | limit on macs as a share of the teacher's, at most 1; 1 if there is none |
    | 25 | budget memory | 0 | 1 | limit on memory as a share of the teacher's, at most 1; 1 if there is none |
    | 26 | budget params | 0 | 1 | limit on params as a share of the teacher's, at most 1; 1 if there is none |
    | 27 | spent latency | 0 | 1 | latency if undecided layers stay whole / 4 times the limit; 0 if there is none |
    | 28 | spent macs | 0 | 1 | macs if undecided layers stay whole / 4 times the limit; 0 if there is none |
    | 29 | spent memory | 0 | 1 | memory if undecided layers stay whole / 4 times the limit; 0 if there is none |
    | 30 | spent params | 0 | 1 | params if undecided layers stay whole / 4 times the limit; 0 if there is none |

    ## Rewards
    0 until the last step, then `reward(outcome)`, by default `relative`: 1 / (1 + KL / p^0.3), in [0, 1], with the KL divergence of
    the student's predictions on validation images from the teacher's, and p its share of the teacher's parameters; with soft limits
    less the relative excess over each limit. A student that cannot be evaluated gives -1.

    ## Starting State
    The first block of the teacher, nothing decided. If the budget is a range, a limit is drawn from it. `reset(options={"budget":
    {"macs": 0.4}})` sets the budget of one episode.

    ## Episode End
    `terminated` after one step a block and one a group, always the same number for a teacher (9 for the default one); layers that
    vanished with a block keep their step, which then has no effect. Never truncated.

    ## Information
    Empty until the last step, then: `accuracy`, `teacher_accuracy` (floats in [0, 1], validation images), `likeness` (exp(-KL) of
    the predictions, in [0, 1]), `reward_terms` (dict of floats), `usage` and `budget` (dicts of floats in
    the resources' units), `is_success` (every limit met), `plan` (JSON of the `Plan`), `failed` (why there is no accuracy, or
    ""), `repeated` (the plan was known, its outcome was used again).

    ## Arguments
    | Name | Default | Meaning |
    |------|---------|---------|
    | teacher | "resnet8-digits" | registered name, `module:factory`, `file.py:factory`, or an `nn.Module` |
    | weights | None | weights file for a teacher given by factory |
    | data | None | data set (the shipped teacher's own if None): name, `imagefolder:DIR`, factory, or `(train, test)` |
    | budget | {"macs": 0.5} | limit a resource (params, macs, memory, latency); a pair is a range to draw from |
    | schedule | "two-step" | also "joint" (one walk, both kinds of decisions), "removal", "shrink" |
    | reward | "relative" | registered name, `module:attribute` or a function of an `Outcome` |
    | limits | "hard" | "soft" leaves actions unclamped and punishes the excess in the reward |
    | evaluator | None | settings of `EvaluatorSettings` as a dict, for example {"distill_steps": 40} |
    | keep | () | patterns of layer names that stay as they are |
    | removable, shrinkable | ("*",) | patterns of those that may be removed, or shrunk |
    | channel_multiple | None | widths are multiples of it, or the teacher's; None: 8 with a latency budget, else 1 |
    | min_width | 0.1 | smallest share of a group's channels |
    | image_size | None | pixels, for `imagefolder:DIR` with images of different sizes |
    | normalization | None | (means, deviations) that the teacher was trained with, if not the data's own |
    | device | "auto" | torch device of the evaluation; "auto": a GPU if there is one and the teacher is not very small |
    | latency | None | what it is measured with; None: {"runtime": "eager" (or "compile", "onnxruntime"), "batch": 1, "threads": 1} |

    >>> import gymnasium as gym, compress_env
    >>> env = gym.make("LayerRemoval-v0", budget={"macs": "40%", "params": 30_000})

    ## Version History
    * v0: first version.

    ## References
    N2N learning (Ashok et al., ICLR 2018) for removal and shrinking in two steps; AMC (He et al., ECCV 2018) for the bounded actions.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        teacher: Any = "resnet8-digits",
        weights: str | None = None,
        data: Any = None,
        budget: Mapping[str, Any] | None = None,
        schedule: str = "two-step",
        reward: Any = "relative",
        limits: str = "hard",
        evaluator: Mapping[str, Any] | None = None,
        keep: Sequence[str] = (),
        removable: Sequence[str] = ("*",),
        shrinkable: Sequence[str] = ("*",),
        channel_multiple: int | None = None,
        min_width: float = 0.1,
        image_size: int | None = None,
        normalization: Any = None,
        device: str = "auto",
        latency: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        progress: bool = False,
    ):
        EzPickle.__init__(
            self, teacher, weights, data, budget, schedule, reward, limits, evaluator, keep, removable,
            shrinkable, channel_multiple, min_width, image_size, normalization, device, latency, render_mode, progress,
        )  # fmt: skip
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(unknown("render mode", render_mode, self.metadata["render_modes"]))
        if limits not in ("hard", "soft"):
            raise UserError(unknown("kind of limits", limits, ["hard", "soft"]))
        self.render_mode = render_mode
        self.hard = limits == "hard"
        self._budget = parse_budget({"macs": 0.5} if budget is None else budget)
        self._reward = REWARDS.get(reward) if isinstance(reward, str) else reward
        try:
            settings = EvaluatorSettings(**(evaluator or {}))
        except TypeError as error:
            known = list(EvaluatorSettings.__dataclass_fields__)
            raise UserError(f"evaluator: {error}; known settings: {', '.join(known)}") from None
        self.teacher = load_teacher(teacher, weights)
        if data is None and self.teacher.data is None:
            raise UserError(
                f"the teacher {self.teacher.name!r} needs data: a name, imagefolder:DIR, a factory or (train, test)"
            )
        self.data = load_data(
            self.teacher.data if data is None else data,
            normalization=normalization or self.teacher.normalization,
            image_size=image_size,
            progress=progress,
        )
        if channel_multiple is None:
            channel_multiple = max(RESOURCES.get(name).channel_multiple for name in self._budget)
        scope = {
            "keep": keep, "removable": removable, "shrinkable": shrinkable, "channel_multiple": channel_multiple,
            "min_width": min_width,
        }  # fmt: skip
        self.device = usable("cpu" if device == "auto" else device)
        self.latency = RuntimeConfig.of(latency, device)
        usable(self.latency.device)
        self._build(scope, schedule, settings, device, progress)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Box(self.embedding.low, self.embedding.high, dtype=np.float32)
        self._episode: Walk | None = None
        self._outcomes: dict[str, Outcome] = {}

    def _build(self, scope, schedule, settings, device, progress) -> None:
        example = self.data.calibration(2)
        with one_thread():
            module = self.teacher.module
            _check_classes(module, example, self.data, self.teacher.name)
            self.graph = trace(module, example, **scope)
            self.cost_model = CostModel(module, self.graph, example, self._budget, self.latency, progress)
            self.problem = Problem(module, self.graph, self.cost_model, schedule)
            if device == "auto":
                self.device = fastest_device(self.graph)
            self.whole = self.student(Plan())
        if self.hard:
            self.problem.way_out(self._absolute({name: low for name, (low, _) in self._budget.items()}))
        with one_thread():
            images = self.data.calibration(SELECTION_IMAGES).to(self.device)
            explained = {
                "shrink": rank_by_reconstruction(self.whole, self.graph, images),
                "remove": block_redundancy(self.whole, self.graph, images),
            }
        self.evaluator = Evaluator(self.whole, self.graph, self.data, settings)
        self.embedding = Embedding(self.problem, explained)

    def _absolute(self, limits: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(limit.absolute(self.cost_model.teacher[name])) for name, limit in limits.items()}

    def student(self, plan: Plan) -> torch.fx.GraphModule:
        """The student of a plan with the teacher's weights, not refitted, on the device of the evaluation."""
        return build_student(self.teacher.module, self.graph, plan).to(self.device)

    @property
    def steps(self) -> int:
        """Steps of an episode."""
        return len(self.problem.decisions)

    def remember(self, plan: Plan, outcome: Outcome) -> None:
        """Take the outcome of a plan as known, as from the records of an earlier run: it is not evaluated again."""
        self._outcomes[plan.key] = outcome
        self.cost_model.remember(plan, outcome.usage, outcome.teacher_usage)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._episode = Walk(self.problem, self.draw_limits(options), self.hard)
        return self.embedding(self._episode), {}

    def draw_limits(self, options: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Limits for an episode, in each resource's unit: the budget of `options` or of the environment, drawn where it is a range."""
        options = options or {}
        for name in options:
            if name != "budget":
                raise UserError(unknown("reset option", name, ["budget"]))
        lows, highs = self._range(parse_budget(options["budget"]) if "budget" in options else self._budget)
        return {
            name: float(self.np_random.uniform(lows[name], highs[name])) if highs[name] > lows[name] else lows[name]
            for name in lows
        }

    def budgets(self, count: int) -> list[dict[str, float]]:
        """`count` limits evenly spread over the environment's budget, the smallest first; one if it is no range."""
        lows, highs = self._range(self._budget)
        shares = np.linspace(0, 1, count) if lows != highs else [0.0]
        return [{name: float(lows[name] + share * (highs[name] - lows[name])) for name in lows} for share in shares]

    def _range(self, budget: Mapping[str, tuple]) -> tuple[dict[str, float], dict[str, float]]:
        """The smallest and largest limits, in each resource's unit."""
        for name in budget:
            if name not in self.cost_model.names:
                raise UserError(f"a {name} budget has to be among those of the environment, which then counts it")
        lows = self._absolute({name: low for name, (low, _) in budget.items()})
        return lows, self._absolute({name: high for name, (_, high) in budget.items()})

    def step(self, action):
        episode = self._episode
        if episode is None or episode.done:
            raise gym.error.ResetNeeded("call reset() before step(), and again when an episode has terminated")
        keep, sparsity = map(float, action)
        if not (math.isfinite(keep) and math.isfinite(sparsity)):
            raise ValueError(f"the action has to be two finite numbers, got {action!r}")
        episode.step(min(max(keep, -1.0), 1.0), min(max(sparsity, -1.0), 1.0))
        if not episode.done:
            return self.embedding(episode), 0.0, False, False, {}
        reward, info = self._finish(episode)
        return self.embedding(episode), reward, True, False, info

    def _finish(self, episode: Walk) -> tuple[float, dict[str, Any]]:
        plan, student, usage = episode.finish()
        repeated = plan.key in self._outcomes
        if repeated:
            known = self._outcomes[plan.key]
            accuracy, likeness, failed = known.accuracy, known.likeness, known.failed
        else:
            try:
                (accuracy, likeness), failed = self.evaluator(student.to(self.device), plan), ""
            except EvaluationFailed as error:
                accuracy, likeness, failed = 0.0, 0.0, str(error)
        outcome = Outcome(
            accuracy, self.evaluator.teacher_accuracy, usage, self.cost_model.teacher, episode.limits, failed, likeness
        )
        self._outcomes[plan.key] = outcome
        reward, terms = rewards.evaluate(self._reward, outcome)
        info = {
            "accuracy": float(accuracy),
            "teacher_accuracy": float(outcome.teacher_accuracy),
            "likeness": likeness,
            "reward_terms": terms,
            "usage": {name: float(v) for name, v in usage.items()},
            "budget": {name: float(v) for name, v in episode.limits.items()},
            "is_success": outcome.feasible,
            "plan": plan.to_json(),
            "failed": failed,
            "repeated": repeated,
        }
        return float(reward), info

    def rows(self) -> list[dict[str, Any]]:
        """The network as it stands in the running episode, a row a layer, for pictures and tables."""
        episode = self._episode
        return network_rows(self, episode.removed, episode.widths, episode)

    def render(self):
        if self.render_mode is None:
            gym.logger.warn("render() does nothing without a render_mode; give one to gym.make")
            return None
        episode = self._episode
        if episode is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        used = self.cost_model.predict_all(episode.removed, episode.widths)
        spent = {
            name: {
                "used": used[name],
                "limit": limit,
                "teacher": self.cost_model.teacher[name],
                "unit": RESOURCES.get(name).unit,
            }
            for name, limit in episode.limits.items()
        }
        title = f"{self.teacher.name}, step {episode.step_index} of {self.steps}"
        return (render.ansi if self.render_mode == "ansi" else render.picture)(self.rows(), spent, title)


def network_rows(
    env: LayerRemovalEnv, removed: frozenset[str], widths: np.ndarray, episode=None
) -> list[dict[str, Any]]:
    """A row a layer with weights: channels and MACs before and after, and whether it was kept, shrunk, removed or is undecided."""
    graph = env.graph
    network = graph.view(frozenset(removed))
    sides = network.layer_sides(widths)
    before, after = graph.view(frozenset()).layer_macs(graph.full), network.layer_macs(widths)
    undecided = set()
    if episode is not None:
        for d in env.problem.decisions[episode.step_index :]:
            undecided.update(graph.blocks[d.target].layers if d.kind == "remove" else [graph.groups[d.target].layer])
    rows = []
    for name, layer in graph.layers.items():
        if layer.kind == "parameter":
            continue
        inputs, outputs = sides.get(name, (0, 0))
        narrower = outputs < layer.channels_out or inputs != layer.channels_in
        status = (
            "removed" if name not in sides else "undecided" if name in undecided else "shrunk" if narrower else "kept"
        )
        rows.append(
            {
                "name": name, "kind": layer.kind, "before": layer.channels_out, "after": outputs,
                "status": status, "macs_before": before.get(name, 0.0), "macs_after": after.get(name, 0.0),
            }
        )  # fmt: skip
    return rows


def _check_classes(module: torch.nn.Module, example: torch.Tensor, data, name: str) -> None:
    """Raises UserError if the teacher does not take the data's inputs or answers for another number of classes."""
    device = next(module.parameters()).device
    training = module.training
    if training:
        raise UserError(f"the teacher {name!r} is in training mode; call .eval() on it first")
    try:
        with torch.no_grad():
            shape = tuple(module(example.to(device)).shape)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the teacher {name!r} does not take inputs of shape {data.input_shape}: {reason}") from error
    if shape != (len(example), data.classes):
        raise UserError(
            f"the teacher {name!r} answers with {shape[1:]}, but the data set {data.name!r} has {data.classes} classes"
        )
