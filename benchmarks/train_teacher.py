"""Train a shipped teacher again: `python -m benchmarks.train_teacher resnet20-cifar10 --data imagefolder:DIR --out FILE`.

On several cores: `torchrun --nproc-per-node=2 -m benchmarks.train_teacher ...`; the cores share every batch.
The search's validation split is held out from the training. A run that is interrupted goes on from its checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from compress_env import devices
from compress_env.cli import options
from compress_env.cli.commands import Command
from compress_env.contexts import one_thread
from compress_env.data import load_data
from compress_env.data.dataset import Split
from compress_env.distill import processes
from compress_env.distill.checkpoint import Checkpoint
from compress_env.distill.train import fit, predict
from compress_env.files import remove
from compress_env.spec import ProblemSpec, SearchSpec
from compress_env.surgery.layout import channels_last
from compress_env.tasks import load_task
from compress_env.teachers import TEACHERS


@click.command(cls=Command, help=__doc__)
@click.argument("name", type=click.Choice(TEACHERS.names()))
@options.of(ProblemSpec, "data", "device")
@options.of(SearchSpec, "seed")
@click.option("--out", type=options.Place(path_type=Path), required=True, help="Weights file to write (.safetensors).")
def main(name: str, data: str | None, out: Path, seed: int, device: str) -> None:
    with processes.together():
        _train(name, data, out, seed, device)


def _train(name: str, data: str | None, out: Path, seed: int, device: str) -> None:
    teacher, first = TEACHERS.get(name), processes.rank() == 0
    images = load_data(data or teacher.data, normalization=teacher.normalization, progress=first)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = teacher.factory()
    model.to(devices.fastest() if device == "auto" else devices.usable(device))

    task = load_task(teacher.task)
    learn = task.losses.get("labels")

    def measured(split: Split) -> float:
        return task.metrics(predict(model, images, split), split.labels)[task.metric]

    def report(_epoch: int) -> str:
        return f"validation {task.metric} {measured(images.validation):.4f}"

    checkpoint = Checkpoint(out.with_suffix(".checkpoint"), model, teacher.recipe, seed=seed)
    with one_thread():
        fit(
            model,
            images,
            teacher.recipe,
            lambda outputs, labels, *_: learn(outputs, outputs, labels, 1.0),
            torch.Generator().manual_seed(seed),
            on_epoch=report,
            checkpoint=checkpoint,
            progress=name,
        )
        if first:
            save_file({k: v.cpu() for k, v in model.state_dict().items()}, out)
            with channels_last(model):
                for split in ("validation", "test"):
                    examples = getattr(images, split)
                    value = measured(examples)
                    click.echo(f"{name}: {split} {task.metric} {value:.4f} on {len(examples):,} images of {images.name}")
            remove(checkpoint.path)


if __name__ == "__main__":
    main()
