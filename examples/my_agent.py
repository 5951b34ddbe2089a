"""A search algorithm of one's own: the cross-entropy method, beside random search at equal evaluations.

You will see for two seeds, 64 students each, the best reward that each found, and the reward of the student that the
mean of the learned distribution gives. Digits at 15 % of the MACs, CPU, about 15 seconds.
`compress_env.testing.check_agent(CrossEntropy)` says whether it keeps the promises that a search relies on.
"""

import numpy as np

from compress_env.objective import Objective
from compress_env.search import search
from compress_env.search.agent import Proposal
from compress_env.spec import EnvironmentSpec


class CrossEntropy:
    """Draw students around a mean, move mean and deviation to the best quarter, repeat (Rubinstein 1999)."""

    def __init__(self, objective, evaluations, seed, batch=8):
        self.steps, self.batch, self.rng = objective.steps, batch, np.random.default_rng(seed)
        self.progress = objective.embedding.names.index("progress")
        self.mean, self.deviation = np.zeros((self.steps, 2)), np.full((self.steps, 2), 0.6)
        self.asked, self.judged = [], []

    def ask(self, n):
        """Students of this batch, at most n; none until all of it has been told."""
        waiting = len(self.judged) // self.batch < len(self.asked) // self.batch
        n = 0 if waiting else min(n, self.batch - len(self.asked) % self.batch)
        drawn = [self.rng.normal(self.mean, self.deviation).clip(-1, 1) for _ in range(n)]
        self.asked += drawn
        return [Proposal(actions) for actions in drawn]

    def tell(self, trials):
        """A trial's index is the number of its proposal. Move when the batch is complete."""
        self.judged = sorted([*self.judged, *trials], key=lambda trial: trial.index)
        if len(self.judged) % self.batch == 0:
            best = sorted(self.judged[-self.batch :], key=lambda trial: trial.reward)[-max(2, self.batch // 4) :]
            elite = np.array([self.asked[trial.index] for trial in best])
            self.mean = 0.3 * self.mean + 0.7 * elite.mean(0)
            self.deviation = 0.3 * self.deviation + 0.7 * elite.std(0) + 0.02

    def policy(self):
        """The mean action of each step; the observation says how far the walk is."""
        return lambda observation: self.mean[round(float(observation[self.progress]) * self.steps)]


def main():
    spec = EnvironmentSpec.of_keywords(budget={"macs": 0.15}, evaluator={"calibration_images": 128})
    objective = Objective(spec)
    print(f"{'seed':>4} {'random, best':>14} {'cross-entropy, best':>20} {'its final policy':>17}")
    for seed in range(2):
        random = search(objective, "random", 64, seed, progress=False)
        ours = search(objective, CrossEntropy, 64, seed, progress=False)  # or "my_agent:CrossEntropy"
        print(f"{seed:4} {random.best.reward:14.4f} {ours.best.reward:20.4f} {ours.final_policy.reward:17.4f}")


if __name__ == "__main__":
    main()
