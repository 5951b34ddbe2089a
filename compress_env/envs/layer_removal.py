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
from compress_env.envs.arguments import arguments_table, signature
from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.objective import AnyWalk, Judged, Objective
from compress_env.registry import unknown
from compress_env.resources import RESOURCES
from compress_env.spec import EnvironmentSpec
from compress_env.walk.observation import entries_table
from compress_env.walk.rows import network_rows


class LayerRemovalEnv(gym.Env, EzPickle):
    """
    ## Description
    A trained *teacher* network is walked over twice: first the agent decides about each block (a residual branch, a layer of a
    chain), which may be **removed**, then for each group of tied channels how far it **shrinks**. At the end the student is built
    with the teacher's weights, refitted, judged on validation images and counted. A finished student meets every limit, counted on
    the module that was really built.

    The *allocation* is the plan that loses least by what each decision costs alone (its *sensitivity*, measured once a teacher).

    ## Action Space
    `Box(-1, 1, (2,), float32)`. Each step reads the entry that it needs and ignores the other.

    With `actions="relative"`, the default with hard limits, an entry says how much more than others of its kind the target is to be
    kept or shrunk than the allocation does. The loss that it causes alone is multiplied, and the plan is the allocation by the losses
    that result: a whole one, within every limit, at each step. Only differences between blocks, and between groups, count.

    | Num | Action   | -1 | 0 | 1 |
    |-----|----------|----|---|---|
    | 0   | keep     | the block's loss counts less: it goes sooner | as in the allocation | it counts more: it stays longer |
    | 1   | sparsity | the group's loss counts more: it is wider | as in the allocation | it counts less: it is narrower |

    With `actions="absolute"`, an action decides alone, and is clamped so that the budget stays within reach.

    | Num | Action   | -1 | 0 | 1 |
    |-----|----------|----|---|---|
    | 0   | keep     | remove the block (as everything below 0) | keep it | keep it |
    | 1   | sparsity | keep all channels | the share that, for all open groups alike, meets the budget | `min_width` of the channels |

    With `actions="share"` likewise, but linear from all channels to `min_width` of them, as AMC has it: 0 is half way.

    ## Observation Space
    `Box(0, 1, (26,), float32)`, the layer embedding; the previous actions lie in [-1, 1]. Two more entries for each resource of
    the user's own that is in the budget. `compress_env.walk.observation.entries()` gives name, minimum and meaning of each. With
    `observation="amc"` it is AMC's state, `Box(0, 1, (11,), float32)`, with `"n2n"` that of N2N, `Box(0, 1, (7,), float32)`:
    `compress_env.walk.states.STATES`.

{entries}

    ## Rewards
    The rewards of an episode add up to `reward(evaluation, limits)`, by default `relative`: 1 / (1 + KL / p^0.3), in [0, 1], with the
    KL divergence of the student's predictions on validation images from the teacher's, and p its share of the teacher's parameters;
    with soft limits less the relative excess over each limit. A student that cannot be evaluated gives -1.

    Each step is rewarded with the change of the reward that is predicted of the *completion* (what is decided so far, with the
    allocation for the rest), at first from 0; the last one with the true reward less what was predicted (potential-based shaping, Ng
    et al., 1999). With `shaping=False` every reward but the last is 0.

    ## Starting State
    The first block of the teacher, nothing decided. If the budget is a range, a limit is drawn from it. `reset(options={{"budget":
    {{"macs": 0.4}}}})` sets the budget of one episode.

    ## Episode End
    `terminated` after one step a block and one a group, always the same number for a teacher (9 for the default one); layers that
    vanished with a block keep their step, which then has no effect. Never truncated.

    ## Information
    Empty until the last step, then:

    | Key | Type | Meaning |
    |-----|------|---------|
    | metrics, teacher_metrics | dict of floats | the task's metrics on validation images, such as accuracy |
    | kl | float | KL(teacher || student) of the predictions in nats; inf if it was not measured or the student failed |
    | reward_terms | dict of floats | they add up to the reward |
    | usage, budget | dicts of floats | what the student uses and its limits, in the resources' units |
    | is_success | bool | every limit is met |
    | plan | str | JSON of the `Plan` |
    | failed | str | why there are no metrics (they are 0 then), or "" |
    | repeated | bool | the plan was known, its numbers were used again |

    ## Arguments
{arguments}

    >>> import gymnasium as gym, compress_env
    >>> env = gym.make("LayerRemoval-v0", budget={{"macs": "40%", "params": 30_000}})

    ## Version History
    * v0: first version.

    ## References
    N2N learning (Ashok et al., ICLR 2018) for removal and shrinking in two steps; AMC (He et al., ECCV 2018) for the bounded actions;
      SPDY (Frantar & Alistarh, ICML 2022) for coefficients of what each layer loses; potential-based shaping (Ng et al., ICML 1999).
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
        self.observation_space = gym.spaces.Box(*objective.bounds, dtype=np.float32)
        self.walk: AnyWalk | None = None
        self._paid = 0.0  # rewards of the running episode
        self.on_judged: Callable[[Judged], object] | None = None
        _ = objective.evaluator  # its teacher is run now, not in the middle of the first episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; `options={"budget": {...}}` sets its budget, `{"limits": {...}}` its limits, in the resources' units."""
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name not in ("budget", "limits"):
                raise UserError(unknown("reset option", name, ["budget", "limits"]))
        if options.get("limits"):
            limits = self.objective.checked_limits(options["limits"])
        else:
            limits = self.objective.draw_limits(self.np_random, options.get("budget"))
        self.walk = self.objective.begin(limits)
        self._paid = 0.0
        return self.objective.observe(self.walk), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the current step by an action `(2,)`; after the last one the student is judged."""
        found = self.decide(action)
        if found is not None:
            return found
        judged = self.objective.judge(self._walking)
        if self.on_judged:
            self.on_judged(judged)
        return self.end(judged)

    def decide(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]] | None:
        """The step without the student being judged: None if it was the last, and `end` is to follow."""
        walk = self.walk
        if walk is None or walk.done:
            raise gym.error.ResetNeeded("call reset() before step(), and again when an episode has terminated")
        keep, sparsity = map(float, action)
        if not (math.isfinite(keep) and math.isfinite(sparsity)):
            raise ValueError(f"the action has to be two finite numbers, got {action!r}")
        walk.step(min(max(keep, -1.0), 1.0), min(max(sparsity, -1.0), 1.0))
        return None if walk.done else (self.objective.observe(walk), self._shaped(walk), False, False, {})

    def end(self, judged: Judged) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """What the last step gives, once its student is judged."""
        return self.objective.observe(self._walking), judged.reward - self._paid, True, False, information(judged)

    def _shaped(self, walk: AnyWalk) -> float:
        """The change of the predicted reward; 0 without shaping."""
        if not self.objective.shaped:
            return 0.0
        predicted = self.objective.predicted(walk)
        change, self._paid = predicted - self._paid, predicted
        return change

    def rows(self) -> list[dict[str, Any]]:
        """The network as it stands in the running episode, a row a layer, for pictures and tables."""
        return network_rows(self.objective.problem, self._walking.removed, self._walking.widths, self._walking)

    @property
    def _walking(self) -> AnyWalk:
        if self.walk is None:
            raise gym.error.ResetNeeded("call reset() first")
        return self.walk

    def render(self) -> Any:
        """The network as it stands: text, or a picture `(height, width, 3)` of uint8."""
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


LayerRemovalEnv.__doc__ = (LayerRemovalEnv.__doc__ or "").format(entries=entries_table(), arguments=arguments_table())


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
