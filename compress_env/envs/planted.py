"""`LayerRemovalPlanted-v0`: the same decisions with a formula in place of the evaluation, so that the best plan is known."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.evaluation import Evaluation
from compress_env.evaluator import Memory
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources.base import Candidate
from compress_env.spec import EnvironmentSpec
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk


class PlantedEvaluator(Memory):
    """The metric is 1 for one planted plan and falls with the distance of a plan from it: the best plan is known, judging is free.

    1 - sum of w_b over blocks decided differently - sum of w_g |share - planted share| over groups, the weights drawn once and
    adding up to 1. Differences count on what the planted plan keeps.

    Args:
        problem: The problem that plans belong to.
        planted: The best plan.
        rng: Draws the weights.
    """

    def __init__(self, problem: Problem, planted: Plan, rng: np.random.Generator):
        super().__init__(problem)
        graph = problem.graph
        self.planted, self.widths = planted, graph.widths(planted)
        weights = rng.dirichlet(np.ones(len(graph.blocks) + len(graph.groups)))
        self.of_blocks = dict(zip(graph.blocks, weights))
        self.of_groups = weights[len(graph.blocks) :]

    def __call__(self, plan: Plan, built: Candidate | None = None) -> Evaluation:
        """The formula's metric in [0, 1]; no student is run, and the KL is not known."""
        if (known := self.known(plan)) is not None:
            return known
        graph, name = self.problem.graph, self.problem.task.metric
        different = plan.switched ^ self.planted.switched
        distance = np.abs(graph.widths(plan) - self.widths) / graph.full
        value = float(1 - sum(self.of_blocks[b] for b in different) - self.of_groups @ distance)
        usage = (built or self.problem.built(plan)).usage
        found = Evaluation({name: value}, None, usage, {name: 1.0}, dict(self.problem.cost_model.teacher))
        self._known[plan] = found
        return found

    def anew(self) -> PlantedEvaluator:
        """One with the same formula, to which every plan is new."""
        other = copy(self)
        Memory.__init__(other, self.problem)
        return other


class LayerRemovalPlantedEnv(LayerRemovalEnv):
    """
    ## Description
    As `LayerRemoval-v0` in every decision, limit and observation, but a student's metric is a formula whose best plan, with
    reward 1, is known: see `PlantedEvaluator`. For tests of agents; nothing about networks can be learned from it.

    ## Arguments
    Those of `LayerRemoval-v0` but `evaluator`, with `actions="absolute"` as the default, by which the planted plan can be reached; and
    `planted_seed` (0), which plan is planted and which decisions matter. The planted plan meets the lowest budget; its metric falls
    with every decision that differs from it.

    ## Version History
    * v0: first version.
    """

    @staticmethod
    def make_objective(progress: bool, planted_seed: int = 0, **settings: Any) -> Objective:
        """The objective of the environment's keywords, with the formula in place of the evaluator."""
        if settings.get("evaluator"):
            raise UserError("the planted environment judges by a formula; leave evaluator out")
        spec = EnvironmentSpec.of_keywords(**{"actions": "absolute", **settings})
        objective = Objective(spec, progress=progress)
        rng = np.random.default_rng([planted_seed, 1])  # not the stream with which random search begins
        walk = Walk(objective.problem, objective.budgets(2)[0])
        while not walk.done:
            walk.step(*rng.uniform(-1, 1, 2))
        plan = objective.problem.finish(walk.removed, walk.widths, walk.limits).plan
        return Objective(spec, problem=objective.problem, evaluator=PlantedEvaluator(objective.problem, plan, rng))
