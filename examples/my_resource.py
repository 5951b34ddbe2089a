"""A resource of one's own, used as a budget: the energy of one inference, from a small model.

A MAC in float32 takes 4.6 pJ and a byte from DRAM 160 pJ in a 45 nm process (M. Horowitz, "Computing's energy problem", ISSCC 2014);
each weight is read once. You will see that no student takes more energy than its budget. On the command line it is
`compress-env search --budget my_resource.py:Energy=0.5`. Digits, CPU, about 15 seconds.
"""

import gymnasium as gym
import numpy as np

import compress_env  # noqa: F401 - registers the environment
from compress_env.resources.base import Resource
from compress_env.resources.macs import Macs

MAC, BYTE = 4.6e-6, 160e-6  # microjoules


class Energy(Resource):
    """Energy of MACs and of weights that are read: predicted from a plan, counted on the module that was built."""

    unit, vectorised = "uJ", True  # predict takes many widths as columns, too

    def predict(self, view, widths):
        """Called many times an episode: exact, and in microseconds."""
        return MAC * view.macs(widths) + BYTE * view.weight_bytes(widths)

    def count(self, student, example):
        """Called once a student, with one example of the data."""
        weights = [*student.parameters(), *student.buffers()]
        return MAC * Macs().count(student, example) + BYTE * sum(w.numel() * w.element_size() for w in weights)


def best_of(budget, episodes=10, seed=0):
    """The best of some random students within a budget, as the `info` of its episode."""
    env = gym.make("LayerRemoval-v0", budget=budget, evaluator={"calibration_images": 128})
    rng, found = np.random.default_rng(seed), []
    for _ in range(episodes):
        env.reset()
        done = False
        while not done:
            _, reward, done, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        found.append((reward, info))
    return max(found, key=lambda student: student[0])[1]


def main():
    print(f"{'budget':28} {'energy':>8} {'limit':>8} {'MACs':>8} {'accuracy':>9}")
    energy = f"{__file__}:Energy"  # its name from then on is "energy"
    for budget in ({energy: 1}, {energy: 0.5}, {energy: "20uJ"}, {"macs": 0.5, energy: 0.25}):
        info = best_of(budget)
        label = ", ".join(f"{name.rpartition(':')[2].lower()}={limit}" for name, limit in budget.items())
        usage, limit = info["usage"], info["budget"]["energy"]
        print(f"{label:28} {usage['energy']:5.1f} uJ {limit:5.1f} uJ {usage['macs']:8,.0f} {info['metrics']['accuracy']:9.2%}")


if __name__ == "__main__":
    main()
