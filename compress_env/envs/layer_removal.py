"""`LayerRemoval-v0`: compressing a network as a Gymnasium environment."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle

from compress_env.envs import render
from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.objective import Judged, Objective
from compress_env.registry import unknown
from compress_env.resources import RESOURCES
from compress_env.spec import EnvironmentSpec, signature
from compress_env.walk.rows import network_rows
from compress_env.walk.walk import Walk


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

    def __init__(self, *, render_mode: str | None = None, progress: bool = False, **settings: Any):
        EzPickle.__init__(self, render_mode=render_mode, progress=progress, **settings)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(unknown("render mode", render_mode, self.metadata["render_modes"]))
        self.render_mode = render_mode
        self._begin(self.make_objective(progress, **settings))

    @staticmethod
    def make_objective(progress: bool, **settings: Any) -> Objective:
        """The objective of the environment's keywords."""
        return Objective(EnvironmentSpec.of_keywords(**settings), progress=progress)

    @classmethod
    def of(cls, objective: Objective) -> LayerRemovalEnv:
        """An environment on an objective that has been made; it is not pickled."""
        env = cls.__new__(cls)
        env.render_mode = None
        env._begin(objective)
        return env

    def _begin(self, objective: Objective) -> None:
        self.objective = objective
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Box(objective.embedding.low, objective.embedding.high, dtype=np.float32)
        self.walk: Walk | None = None
        self.on_judged: Callable[[Judged], object] | None = None
        _ = objective.evaluator  # its teacher is run now, not in the middle of the first episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name != "budget":
                raise UserError(unknown("reset option", name, ["budget"]))
        self.walk = self.objective.begin(self.objective.draw_limits(self.np_random, options.get("budget")))
        return self.objective.observe(self.walk), {}

    def step(self, action):
        walk = self.walk
        if walk is None or walk.done:
            raise gym.error.ResetNeeded("call reset() before step(), and again when an episode has terminated")
        keep, sparsity = map(float, action)
        if not (math.isfinite(keep) and math.isfinite(sparsity)):
            raise ValueError(f"the action has to be two finite numbers, got {action!r}")
        walk.step(min(max(keep, -1.0), 1.0), min(max(sparsity, -1.0), 1.0))
        if not walk.done:
            return self.objective.observe(walk), 0.0, False, False, {}
        judged = self.objective.judge(walk)
        if self.on_judged:
            self.on_judged(judged)
        return self.objective.observe(walk), judged.reward, True, False, information(judged)

    def rows(self) -> list[dict[str, Any]]:
        """The network as it stands in the running episode, a row a layer, for pictures and tables."""
        return network_rows(self.objective.problem, self._walking.removed, self._walking.widths, self._walking)

    @property
    def _walking(self) -> Walk:
        if self.walk is None:
            raise gym.error.ResetNeeded("call reset() first")
        return self.walk

    def render(self):
        if self.render_mode is None:
            gym.logger.warn("render() does nothing without a render_mode; give one to gym.make")
            return None
        walk, problem = self._walking, self.objective.problem
        used, teacher = walk.usage, problem.cost_model.teacher
        spent = {
            name: {"used": used[name], "limit": limit, "teacher": teacher[name], "unit": RESOURCES.get(name).unit}
            for name, limit in walk.limits.items()
        }
        title = f"{problem.teacher.name}, step {walk.step_index} of {self.objective.steps}"
        return (render.ansi if self.render_mode == "ansi" else render.picture)(self.rows(), spent, title)


LayerRemovalEnv.__init__.__signature__ = signature(  # type: ignore[attr-defined]
    inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
    inspect.Parameter("render_mode", inspect.Parameter.KEYWORD_ONLY, default=None),
    inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=False),
)


def information(judged: Judged) -> dict[str, Any]:
    """The terminal `info`: always the same keys, no wall-clock, and no NaN."""
    evaluation: Evaluation = judged.evaluation
    return {
        "metrics": {name: float(v) for name, v in evaluation.metrics.items()},
        "teacher_metrics": {name: float(v) for name, v in evaluation.teacher_metrics.items()},
        "kl": math.inf if evaluation.kl is None else float(evaluation.kl),
        "reward_terms": dict(judged.terms),
        "usage": {name: float(v) for name, v in evaluation.usage.items()},
        "budget": {name: float(v) for name, v in judged.limits.items()},
        "is_success": evaluation.meets(judged.limits),
        "plan": judged.plan.to_json(),
        "failed": evaluation.failed,
        "repeated": judged.repeated,
    }
