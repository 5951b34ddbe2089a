"""A network of one's own as the teacher.

You will see a VGG-like network, defined and trained in this file, beside the student that is found and distilled within
40 % of its parameters and half its MACs. Digits, CPU, about 15 seconds.
"""

import tempfile

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import compress_env
from compress_env.datasets import load_data
from compress_env.distill.train import Recipe, fit


class SmallVGG(nn.Module):
    """Five convolutions and two linear layers; any network that `torch.fx` can trace will do."""

    def __init__(self):
        super().__init__()
        layers, before = [], 1
        for width in (16, 16, "pool", 32, 32, 32, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32 * 4, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.classifier(self.features(x))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, generator = SmallVGG(), torch.Generator().manual_seed(0)
    recipe = Recipe(epochs=8, batch_size=64)
    fit(teacher, load_data("digits"), recipe, lambda logits, labels, *_: cross_entropy(logits, labels), generator)
    with tempfile.TemporaryDirectory() as folder:
        found = compress_env.compress(
            teacher, data="digits", budget={"params": "40%", "macs": 0.5}, agent="random", evaluations=20, out=folder,
            evaluator={"calibration_images": 128}, finetune_epochs=8, progress=False,
        )  # fmt: skip
    before, after = found.result["teacher"], found.result["student"]
    print(f"{'':14} {'teacher':>10} {'student':>10}")
    for key in ("params", "macs", "memory_bytes"):
        print(f"{key:14} {before[key]:10,.0f} {after[key]:10,.0f}")
    print(f"{'accuracy_test':14} {before['accuracy_test']:10.2%} {after['accuracy_test']:10.2%}")
    print("removed:", ", ".join(found.plan.removed) or "nothing")


if __name__ == "__main__":
    main()
