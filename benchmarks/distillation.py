"""Is the gain of distillation larger for shallower students? `python -m benchmarks.distillation --help`.

Plain convolutional networks of 1 to 4 layers and as many parameters are trained from scratch. The question is that of Ba & Caruana
(Do deep nets really need to be deep?, NeurIPS 2014) and Urban et al. (Do deep convolutional nets really need to be deep and
convolutional?, ICLR 2017). The latter's students, of 10 million parameters and 1, 2, 3 and 4 convolutional layers, gain 2.7, 1.1, 0.7
and 0.85 points on CIFAR-10 when they learn from an ensemble and not from labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from compress_env import devices
from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.contexts import one_thread, seeded
from compress_env.data.dataset import Data
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import finetuning_recipe
from compress_env.distill.train import predict
from compress_env.files import JsonLines
from compress_env.resources import RESOURCES
from compress_env.running import data_of
from compress_env.spec import ProblemSpec
from compress_env.surgery.layout import channels_last
from compress_env.tasks import load_task
from compress_env.teachers import load_teacher

DEPTHS = (1, 2, 3, 4)
LOSSES = ("labels", "hinton", "mimic")
HEAD, HIDDEN = 4, 128
"""Pixels of a side that the convolutions leave, and units of the layer behind them."""


class PlainNetwork(nn.Module):
    """`depth` convolutions of 3x3 with normalisation and ReLU, each pooled down to 4x4 at least, then two linear layers."""

    def __init__(self, inputs: int, size: int, outputs: int, depth: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Conv2d(width if i else inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if size >= 2 * HEAD:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(HEAD), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(width * HEAD**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Trained:
    """A student that was trained.

    Attributes:
        depth: Convolutions.
        loss: What it was trained with.
        lr: The peak rate.
        seed: Of its first weights, and of the order of the images.
        parameters: How many it has.
        validation: Accuracy of its best epoch on validation images.
        test: The same on test images.
    """

    depth: int
    loss: str
    lr: float
    seed: int
    parameters: int
    validation: float
    test: float


def student(data: Data, depth: int, parameters: int, seed: int) -> PlainNetwork:
    """The widest network of that depth with at most that many parameters, or of one channel."""
    channels, size = data.input_shape[0], data.input_shape[-1]

    def made(width: int) -> PlainNetwork:
        with seeded(seed):
            return PlainNetwork(channels, size, data.outputs, depth, width)

    width = 1
    while _count(made(width + 1)) <= parameters:
        width += 1
    return made(width)


def train(
    teacher: nn.Module, data: Data, parameters: int, epochs: int, depths: Sequence[int], losses: Sequence[str], rates: Sequence[float],
    seeds: Sequence[int], results: JsonLines[Trained], progress: bool = True,
) -> list[Trained]:  # fmt: skip
    """Train every student that the results lack, on the device of the teacher, which is in evaluation mode."""
    task, device = load_task("classification"), next(teacher.parameters()).device
    rows = results.read()
    done = {(r.depth, r.loss, r.lr, r.seed) for r in rows}
    of = {name: [round(rate * getattr(task.losses.get(name), "rate", 1.0), 6) for rate in rates] for name in losses}
    todo = [(d, n, r, s) for s in seeds for d in depths for n in losses for r in of[n] if (d, n, r, s) not in done]
    for depth, loss, lr, seed in tqdm(todo, desc="training", unit="student", disable=not progress):
        network = student(data, depth, parameters, seed)
        recipe = finetuning_recipe(len(data.train), epochs, device, lr)
        found = finetune(network.to(device), teacher, data, recipe, task, loss=loss, seed=seed, progress=False)
        rows.append(Trained(depth, loss, lr, seed, _count(network), found.best_validation, found.metric_test))
        results.append(rows[-1])
    return rows


def table(rows: Sequence[Trained]) -> str:
    """Markdown, a line a depth: test accuracy with each loss at its best rate, by validation accuracy, and its gain over labels."""
    lines = ["| convolutions | parameters | loss | rate | test accuracy | against labels |", "|---|---|---|---|---|---|"]
    for depth in sorted({r.depth for r in rows}):
        plain = _best([r for r in rows if r.depth == depth and r.loss == "labels"])
        for loss in dict.fromkeys(r.loss for r in rows if r.depth == depth):
            found = _best([r for r in rows if r.depth == depth and r.loss == loss])
            values = 100 * np.array([r.test for r in found.values()])
            gains = np.array([100 * (found[s].test - plain[s].test) for s in found if s in plain])
            one = next(iter(found.values()))
            gain = "" if loss == "labels" or not len(gains) else f"{gains.mean():+.2f}{_error(gains)}"
            lines.append(f"| {depth} | {one.parameters:,} | {loss} | {one.lr:g} | {values.mean():.2f} %{_error(values)} | {gain} |")
    return "\n".join(lines)


def _best(rows: Sequence[Trained]) -> dict[int, Trained]:
    """The students by seed at the rate with the best mean accuracy on validation images."""
    rates = {r.lr: [other for other in rows if other.lr == r.lr] for r in rows}
    best = max(rates.values(), key=lambda found: np.mean([r.validation for r in found]), default=[])
    return {r.seed: r for r in best}


def _error(values: np.ndarray) -> str:
    return f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@click.command(cls=Command)
@options.of(ProblemSpec, "teacher", "weights", "data", "image_size", "augmentation", "device")
@click.option("--parameters", type=click.IntRange(1), help="Of each student; those of the teacher if absent.")
@click.option("--depth", "depths", type=click.IntRange(1), multiple=True, default=DEPTHS, show_default=True, help="May be repeated.")
@click.option("--loss", "losses", multiple=True, default=LOSSES, show_default=True, help="May be repeated.")
@click.option("--lr", "rates", type=options.Finite(0, min_open=True), multiple=True, default=(0.02, 0.05), show_default=True,
              help="Peak rates, for mimic a tenth; tables have the best on validation images. May be repeated.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True, help="Passes over the training images.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Students of each kind.")
@click.option("--out", type=options.Place(path_type=Path, dir_okay=False), required=True, metavar="FILE.jsonl",
              help="Results; continued if not complete.")  # fmt: skip
@click.option("--show", is_flag=True, help="Print the table of what is in --out, and stop.")
def main(
    parameters: int | None, depths: tuple[int, ...], losses: tuple[str, ...], rates: tuple[float, ...], epochs: int, seeds: int,
    out: Path, show: bool, **problem: Any,
) -> None:  # fmt: skip
    """Train plain convolutional students from scratch, on labels alone and from a teacher, and print how much the teacher adds.

    \b
    python -m benchmarks.distillation --teacher resnet8-digits --epochs 10 --seeds 2 --out digits.jsonl
    python -m benchmarks.distillation --teacher resnet56-cifar10 --data imagefolder:DIR --lr 0.02 --lr 0.1 --out cifar10.jsonl
    """
    results = JsonLines(out, Trained, header=True)
    if show:
        click.echo(table(results.read()))
        return
    task = load_task("classification")
    for loss in losses:
        task.losses.get(loss)
    spec = ProblemSpec(**problem)
    teacher = load_teacher(spec.teacher, spec.weights, progress=True)
    data = data_of(spec, teacher, progress=True)
    macs = RESOURCES.get("macs").count(teacher.module, data.calibration(1))
    device = devices.fastest_for(macs) if spec.device == "auto" else devices.usable(spec.device)
    parameters = parameters or _count(teacher.module)
    results.begin(
        {"teacher": teacher.name, "data": data.name, "training_images": len(data.train), "parameters": parameters, "epochs": epochs}
    )
    whole = teacher.module.to(device)
    rows = train(whole, data, parameters, epochs, depths, losses, rates, range(seeds), results)
    with one_thread(), channels_last(whole):
        known = task.metrics(predict(whole, data, data.test), data.test.labels)[task.metric]
    click.echo(f"{table(rows)}\n\nteacher {teacher.name}: {known:.2%}; {epochs} epochs on {device.type}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.distillation")
