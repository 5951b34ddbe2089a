"""`LayerRemovalPlanted-v0`: the same decisions with a formula in place of the evaluation, so that the best plan is known."""

from __future__ import annotations

import numpy as np

from compress_env.distill.evaluator import Score
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk


class PlantedEvaluator:
    """Accuracy 1 for one planted plan, less the further a plan is from it: what an agent should find is known, and costs nothing.

    1 - sum of w_u over blocks decided differently - sum of w_g |share - planted share| over groups, the weights drawn once and
    adding up to 1. Differences count on what the planted plan keeps.
    """

    teacher_accuracy = 1.0

    def __init__(self, planted: Plan, graph, rng: np.random.Generator):
        self.planted, self.graph = planted, graph
        self.removed, self.widths = frozenset(planted.removed), graph.widths(planted)
        weights = rng.dirichlet(np.ones(len(graph.blocks) + len(graph.groups)))
        self.of_units = dict(zip(graph.blocks, weights))
        self.of_groups = weights[len(graph.blocks) :]

    def __call__(self, student, plan: Plan) -> Score:
        """The formula's accuracy in [0, 1]; the student is not run, and its likeness not known."""
        different = frozenset(plan.removed) ^ self.removed
        distance = np.abs(self.graph.widths(plan) - self.widths) / self.graph.full
        value = float(1 - sum(self.of_units[u] for u in different) - self.of_groups @ distance)
        return Score(value, None)


class LayerRemovalPlantedEnv(LayerRemovalEnv):
    """
    ## Description
    As `LayerRemoval-v0` in every decision, limit and observation, but a student's accuracy is a formula whose best plan, with
    reward 1, is known: see `PlantedEvaluator`. For tests of agents; nothing about networks can be learned from it.

    ## Arguments
    Those of `LayerRemoval-v0`, and `planted_seed` (0), which plan is planted and which decisions matter. The planted plan meets the
    lowest budget; its accuracy falls with every decision that differs from it.

    ## Version History
    * v0: first version.
    """

    def __init__(self, *args, planted_seed: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self._ezpickle_kwargs = {**self._ezpickle_kwargs, "planted_seed": planted_seed}
        rng = np.random.default_rng([planted_seed, 1])  # not the stream with which random search begins
        episode = Walk(
            self.problem, self._absolute({name: low for name, (low, _) in self._budget.items()}), hard=True
        )
        while not episode.done:
            episode.step(*rng.uniform(-1, 1, 2))
        plan, _, _ = episode.finish()
        self.evaluator = PlantedEvaluator(plan, self.graph, rng)
