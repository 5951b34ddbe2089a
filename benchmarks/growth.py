"""What Net2Net and searches of growing networks bring, beside the same training without them: `python -m benchmarks.growth --help`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

import compress_env
from compress_env import devices
from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.contexts import one_thread, seeded
from compress_env.data.dataset import Data, Split
from compress_env.distill.recipes import finetuning_recipe
from compress_env.distill.train import fit, predict
from compress_env.errors import UserError
from compress_env.files import JsonLines, make_folder
from compress_env.resources import RESOURCES
from compress_env.running import data_of
from compress_env.spec import ProblemSpec, SearchSpec
from compress_env.surgery.layout import channels_last
from compress_env.surgery.net2net import deepen, widen
from compress_env.surgery.trace import trace
from compress_env.tasks import load_task
from compress_env.teachers import load_teacher
from compress_env.teachers.resnet import ResNet

WIDTHS, BLOCKS = (16, 32, 64), 3
"""Of ResNet-20, which Net2Net makes from a network of half the widths, and from one of two blocks a stage."""
NETWORKS = {"small": (8, 16, 32), "badly proportioned": (20, 20, 20)}
"""Widths of the three stages. The latter has 3/4 of its MACs in the first stage, and 20 channels where a ResNet-20 has 64."""
KINDS = {"grow": "small", "transform small": "small", "transform badly proportioned": "badly proportioned"}
RATES = (0.02, 0.1)
PARTS = ("wider", "deeper", *KINDS, "transform teacher")


@dataclass(frozen=True)
class Row:
    """A network after a training on labels.

    Attributes:
        part: The experiment, one of PARTS.
        start: Where the training starts from.
        seed: Of the first weights, the search and the training.
        epochs: Of the training.
        lr: Its peak rate.
        macs: Of the network.
        params: Of the network.
        before: Accuracy on validation images before the training.
        validation: After it.
        test: After it, on test images.
    """

    part: str
    start: str
    seed: int
    epochs: int
    lr: float
    macs: float
    params: float
    before: float
    validation: float
    test: float


@dataclass(frozen=True)
class Setting:
    """What all networks of a run share: data, device, how long they were trained before, and how searches go."""

    data: Data
    device: torch.device
    pretraining: int
    agent: str
    evaluations: int
    growth: float
    out: Path

    def network(self, widths: Sequence[int], blocks: int, seed: int) -> ResNet:
        """A network with random weights."""
        with seeded(seed):
            return ResNet(self.data.input_shape[0], widths, blocks, self.data.outputs)

    def trained(self, widths: Sequence[int], blocks: int, seed: int) -> nn.Module:
        """A network that learned from labels; kept in a file, so that every experiment begins with the same."""
        network = self.network(widths, blocks, seed)
        file = self.out / f"{'-'.join(map(str, widths))}x{blocks}-{seed}.pt"
        if file.exists():
            network.load_state_dict(torch.load(file, weights_only=True))
        else:
            self.learn(network, self.pretraining, 0.1, seed)
            torch.save({k: v.cpu() for k, v in network.state_dict().items()}, file)
        return network.cpu().eval()

    def learn(self, network: nn.Module, epochs: int, lr: float, seed: int) -> tuple[float, float, float]:
        """Train a network on labels, in place; accuracy on validation images before and after it, and on test images."""
        task, data = load_task("classification"), self.data
        loss, recipe = task.losses.get("labels"), finetuning_recipe(len(data.train), epochs, self.device, lr)
        network.to(self.device).eval()

        def measured(split: Split) -> float:
            return task.metrics(predict(network, data, split), split.labels)[task.metric]

        with one_thread(), channels_last(network):
            before = measured(data.validation)
            fit(network, data, recipe, lambda z, y, *_: loss(z, z, y, 1.0), torch.Generator().manual_seed(seed))
            return before, measured(data.validation), measured(data.test)


def starts(setting: Setting, part: str, seed: int, teacher: nn.Module) -> dict[str, nn.Module]:
    """Networks to train, by what they start from."""
    if part in ("wider", "deeper"):
        network = grown(setting, part, seed)
        return {"random weights": anew(network, seed), f"net2{part}net": network}
    network = teacher if part == "transform teacher" else setting.trained(NETWORKS[KINDS[part]], BLOCKS, seed)
    folder = setting.out / f"{part}-{seed}".replace(" ", "-")
    budget = {"macs": f"{setting.growth if part == 'grow' else 1:.0%}"}
    found = compress_env.compress(
        network, setting.data, budget, setting.agent, setting.evaluations, seed, folder, finetune_epochs=0, progress=False,
        resume=(folder / "run.json").exists(), device=str(setting.device), changes="grow" if part == "grow" else "transform",
    ).student  # fmt: skip
    alike = {}
    if part == "grow":
        widths = [round(w * setting.growth**0.5) for w in NETWORKS["small"]]
        alike = {"all widths alike, random weights": setting.network(widths, BLOCKS, seed)}
    return {"as it came": network, "found": found, "found, random weights": anew(found, seed), **alike}


def grown(setting: Setting, part: str, seed: int) -> nn.Module:
    """ResNet-20 from a trained network that is half as wide, or has a block less in each stage; it computes the same as that."""
    inputs = setting.data.calibration(128)
    network = setting.trained(*((NETWORKS["small"], BLOCKS) if part == "wider" else (WIDTHS, BLOCKS - 1)), seed)
    if part == "wider":
        for group in list(trace(network, inputs).groups.values()):
            network = widen(network, trace(network, inputs), group.name, 2 * group.size, noise=0.01, seed=seed)
        return network
    for stage in range(len(WIDTHS)):
        place = f"stages_{stage}_{BLOCKS - 2}_relu2"
        network = deepen(network, trace(network, inputs), place, "block", name=f"deeper{stage}", inputs=inputs)
    return network


def anew(network: nn.Module, seed: int) -> nn.Module:
    """The network with new random weights, by each layer's own method."""
    network = copy.deepcopy(network)
    with seeded(seed):
        for layer in network.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return network


def run(
    setting: Setting, parts: Sequence[str], epochs: Sequence[int], seeds: Sequence[int], teacher: nn.Module, results: JsonLines[Row]
) -> list[Row]:
    """Train every network that the results lack."""
    rows = results.read()
    done = {(r.part, r.start, r.seed, r.epochs, r.lr) for r in rows}
    with tqdm(total=len(parts) * len(seeds), desc="growth", unit="part") as bar:
        for seed, part in [(s, p) for s in seeds for p in parts]:
            bar.set_postfix_str(f"{part}, seed {seed}")
            lengths = epochs if part in ("wider", "deeper") else [max(epochs)]
            for start, network in starts(setting, part, seed, teacher).items():
                macs, params = (RESOURCES.get(n).count(network, setting.data.calibration(1)) for n in ("macs", "params"))
                for n, lr in [(n, lr) for n in lengths for lr in RATES if (part, start, seed, n, lr) not in done]:
                    rows.append(Row(part, start, seed, n, lr, macs, params, *setting.learn(copy.deepcopy(network), n, lr, seed)))
                    results.append(rows[-1])
            bar.update()
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line a start and length: accuracy at the rate that is better on validation images, mean and standard error."""
    lines = ["| | starts from | MACs | parameters | before | epochs | rate | test accuracy |", "|---|---|---|---|---|---|---|---|"]
    for part, epochs, start in dict.fromkeys((r.part, r.epochs, r.start) for r in rows):
        own = [r for r in rows if (r.part, r.epochs, r.start) == (part, epochs, start)]
        lr = max({r.lr for r in own}, key=lambda x: np.mean([r.validation for r in own if r.lr == x]))
        own = [r for r in own if r.lr == lr]
        macs, params, before, test = (np.array([getattr(r, n) for r in own]) for n in ("macs", "params", "before", "test"))
        error = f" ± {100 * test.std(ddof=1) / len(test) ** 0.5:.2f}" if len(test) > 1 else ""
        lines.append(
            f"| {part} | {start} | {macs.mean() / 1e6:.1f} M | {params.mean():,.0f} | {before.mean():.1%} | {epochs} | {lr:g} | "
            f"{100 * test.mean():.2f} %{error} |"
        )
    return "\n".join(lines)


@click.command(cls=Command)
@options.of(ProblemSpec, "data", "device")
@options.of(SearchSpec, "agent", "evaluations")
@click.option("--teacher", help="For `transform teacher`: a shipped teacher of the data.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="May be repeated; all if absent.")
@click.option("--pretraining", type=click.IntRange(1), default=30, show_default=True, help="Epochs of the networks to start from.")
@click.option("--epochs", type=click.IntRange(1), multiple=True, default=(1, 3, 10), show_default=True,
              help="Of the trainings after; searches have the longest. May be repeated.")  # fmt: skip
@click.option("--growth", type=options.Finite(1, min_open=True), default=4.0, show_default=True,
              help="MACs of `grow`, times the network's.")  # fmt: skip
@click.option("--seed", "seeds", type=click.IntRange(0), multiple=True, default=(0, 1, 2), show_default=True, help="May be repeated.")
@click.option("--show", "files", type=click.Path(path_type=Path, exists=True), multiple=True, metavar="FILE.jsonl",
              help="Print the table of results and stop. May be repeated.")  # fmt: skip
@click.option("--out", type=options.Place(path_type=Path), metavar="DIR", help="Folder of results and searches; continued.")
def main(
    data: str | None, device: str, agent: str, evaluations: int, teacher: str | None, parts: tuple[str, ...], pretraining: int,
    epochs: tuple[int, ...], growth: float, seeds: tuple[int, ...], files: tuple[Path, ...], out: Path | None,
) -> None:  # fmt: skip
    """Net2Net against random weights at equal epochs; searches that grow a small network or move the capacity of one that is badly
    proportioned, against the same training without them.

    \b
    python -m benchmarks.growth --data digits --evaluations 30 --epochs 5 --seed 0 --out runs/growth
    python -m benchmarks.growth --teacher resnet20-cifar10 --data imagefolder:DIR --out runs/growth
    python -m benchmarks.growth --show benchmarks/growth/cifar10.jsonl
    """
    if files:
        click.echo(table([row for file in files for row in JsonLines(file, Row, header=True).read()]))
        return
    if out is None:
        raise UserError("--out is missing: the folder for the results")
    network = load_teacher(teacher or "resnet8-digits")
    images = data_of(ProblemSpec(network.name, data=data), network, progress=True)
    macs = RESOURCES.get("macs").count(network.module, images.calibration(1))
    where = devices.fastest_for(macs) if device == "auto" else devices.usable(device)
    make_folder(out)
    results = JsonLines(out / "results.jsonl", Row, header=True)
    results.begin({
        "data": images.name, "training_images": len(images.train), "teacher": network.name, "pretraining": pretraining, "agent": agent,
        "evaluations": evaluations, "growth": growth,
    })  # fmt: skip
    setting = Setting(images, where, pretraining, agent, evaluations, growth, out)
    click.echo(table(run(setting, parts or PARTS, epochs, seeds, network.module, results)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.growth")
