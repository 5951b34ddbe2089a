"""A task of one's own, the meaning of outputs, is one class: here regression of the place of the ink on an image, two numbers.

You will see how much of the labels' variance a network explains, and a student at 2 % of its MACs before and after distillation.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compress_env.data import Data, Split, make_data
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import fit
from compress_env.objective import Objective
from compress_env.registry import Registry
from compress_env.spec import EnvironmentSpec


class Regression:
    metric, loss, losses = "r2", "distance", Registry("loss")
    losses.register("distance")(lambda student, teacher, labels, temperature: (student - teacher).square().mean())

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        return {"r2": max(0.0, 1 - ((outputs - labels).square().sum() / (labels - labels.mean(0)).square().sum()).item())}

    def divergence(self, student: Tensor, teacher: Tensor) -> float:  # of normal distributions around the outputs
        return 0.5 * (student - teacher).square().sum(1).mean().item()

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        return ((student - teacher).abs().amax(1) < 0.1).double().mean().item()

    def check(self, outputs: Tensor, data: Data, teacher: str) -> None:
        assert outputs.shape[1:] == data.train.labels.shape[1:]


def main():
    images = load_digits().images
    ink = np.stack([(images.sum(axis) @ np.linspace(-4, 4, 8)) / images.sum((1, 2)) for axis in (1, 2)], 1)
    examples = Split(torch.tensor(images / 16).float().unsqueeze(1), torch.tensor(ink).float())
    data = make_data("ink", examples.take(slice(1300)), examples.take(slice(1300, None)))
    layers = [m for a in (1, 16, 16) for m in (nn.Conv2d(a, 16, 3, padding=1), nn.ReLU())]
    teacher, learn = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 2)), lambda out, labels, *_: (out - labels).square().mean()
    fit(teacher, data, Recipe(10, batch_size=64, lr=0.1), learn, torch.manual_seed(0))
    keywords = {"teacher": teacher, "data": data, "budget": {"macs": 0.02}, "task": f"{__file__}:Regression"}
    objective = Objective(EnvironmentSpec.of_keywords(**keywords))
    problem, walk = objective.problem, objective.begin(objective.budgets(1)[0])
    while not walk.done:
        walk.step(0.0, 0.0)
    judged = objective.judge(walk)
    student, slow = objective.evaluator.prepared(judged.plan), Recipe(10, batch_size=64, lr=0.01)
    done = finetune(student, problem.whole, data, slow, problem.task, progress=False)
    print(f"teacher             explains {judged.evaluation.teacher_metric:.2%}")
    print(f"student as cut      explains {done.history[0]:.2%} with {judged.evaluation.size:.1%} of the parameters")
    print(f"student distilled   explains {done.best_validation:.2%}, of test images {done.metric_test:.2%}")


if __name__ == "__main__":
    main()
