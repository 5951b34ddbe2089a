"""A search algorithm of one's own: the cross-entropy method, beside random search at equal evaluations.

You will see for two seeds, 32 students each, the best reward that each found, and the reward of the student that the
mean of the learned distribution gives. Digits at 15 % of the MACs, CPU, about 15 seconds.
"""

import gymnasium as gym
import numpy as np

import compress_env  # noqa: F401 - registers the environment
from compress_env.search import search


class CrossEntropy:
    """Draw students around a mean, move mean and deviation to the best quarter, repeat (Rubinstein 1999)."""

    def __init__(self, env, episodes: int, seed: int, batch: int = 8):
        self.env, self.episodes, self.seed, self.batch = env, episodes, seed, batch
        self.steps = env.unwrapped.steps
        self.mean, self.deviation = np.zeros((self.steps, 2)), np.full((self.steps, 2), 0.6)

    def run(self, checkpoint) -> None:
        """Play the episodes. What a resumed run has recorded is not evaluated again, so no checkpoint is needed."""
        rng, played = np.random.default_rng(self.seed), 0
        while played < self.episodes:
            students = min(self.batch, self.episodes - played)
            batch = rng.normal(self.mean, self.deviation, (students, self.steps, 2)).clip(-1, 1)
            rewards = [self.play(actions) for actions in batch]
            elite = batch[np.argsort(rewards)[-max(2, self.batch // 4) :]]
            self.mean = 0.3 * self.mean + 0.7 * elite.mean(0)
            self.deviation = 0.3 * self.deviation + 0.7 * elite.std(0) + 0.02
            played += len(batch)

    def play(self, actions) -> float:
        self.env.reset(seed=self.seed)
        for action in actions:
            _, reward, *_ = self.env.step(action.astype(np.float32))
        return reward

    def policy(self):
        """The mean action of each step; observation[1] is the share of the steps already taken."""
        return lambda observation: self.mean[round(float(observation[1]) * self.steps)].astype(np.float32)


def main():
    env = gym.make("LayerRemoval-v0", budget={"macs": 0.15}, evaluator={"calibration_images": 128})
    print(f"{'seed':>4} {'random, best':>14} {'cross-entropy, best':>20} {'its final policy':>17}")
    for seed in range(2):
        random = search(env, "random", 32, seed, progress=False)
        ours = search(env, CrossEntropy, 32, seed, progress=False)  # or "my_agent:CrossEntropy"
        print(f"{seed:4} {random.best.reward:14.4f} {ours.best.reward:20.4f} {ours.final_policy.reward:17.4f}")


if __name__ == "__main__":
    main()
