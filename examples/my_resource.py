"""A resource of one's own, registered and then used as a budget.

The resource is depth: how many layers with weights there are, which is what latency hangs on where starting a kernel
costs more than running it. You will see that no student is deeper than its budget. Digits, CPU, about 10 seconds.
"""

import gymnasium as gym
from torch import nn

import compress_env  # noqa: F401 - registers the environment
from compress_env.resources.base import RESOURCES
from compress_env.search import search

LAYERS = ("conv", "depthwise", "grouped", "linear")


class Depth:
    """Layers with weights: predicted from what is left of the layer graph, counted on the module that was built."""

    UNIT = "layers"

    @staticmethod
    def predict(network, widths) -> float:
        """Called many times an episode: exact, and in microseconds. `widths` play no part here."""
        return float(sum(layer.kind in LAYERS for layer in network.layers))

    @staticmethod
    def count(model, example) -> float:
        """Called once a student, with one example of the data."""
        return float(sum(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)) for m in model.modules()))


def main():
    RESOURCES.register("depth")(Depth)  # before environments are made
    print(f"{'budget':28} {'depth':>6} {'MACs':>8} {'accuracy':>9}  removed")
    for budget in ({"macs": 0.5}, {"macs": 0.5, "depth": 8}, {"macs": 0.5, "depth": "60%"}, {"depth": 4}):
        env = gym.make("LayerRemoval-v0", budget=budget, evaluator={"calibration_images": 128})
        best = search(env, "random", evaluations=10, seed=0, progress=False).best
        usage, label = best.outcome.usage, ", ".join(f"{name}={limit}" for name, limit in budget.items())
        removed = ", ".join(best.plan.removed) or "nothing"
        print(f"{label:28} {usage['depth']:6.0f} {usage['macs']:8,.0f} {best.outcome.accuracy:9.2%}  {removed}")


if __name__ == "__main__":
    main()
