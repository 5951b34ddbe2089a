"""What a search costs to begin with on many pictures in folders: seconds and peak memory until the first student is judged.

    python -m benchmarks.large_data                                          # 200,000 pictures of 224 pixels, MobileNetV2
    python -m benchmarks.large_data --teacher benchmarks.large_network:teacher

The pictures are hard links to a few hundred crops of scikit-learn's two photos, in a temporary folder that is removed at the end.
Nothing is cached. The teacher has random weights unless its factory loads some: time and memory are the same.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import click
import torch
from PIL import Image

from benchmarks.large_network import SIZE, pictures

CLASSES = 100


def make(root: Path, count: int) -> None:
    """Folders train and test with `count` pictures in CLASSES classes, a twentieth of them to test."""
    originals = []
    for i, pixels in enumerate(pictures(None)):
        originals.append(root / f"{i}.jpg")
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(originals[-1], quality=90)
    for part, share in (("train", 0.95), ("test", 0.05)):
        for number in range(CLASSES):
            folder = root / "set" / part / f"{number:03}"
            folder.mkdir(parents=True)
            for i in range(int(count * share / CLASSES)):
                os.link(originals[(i * CLASSES + number) % len(originals)], folder / f"{i:06}.jpg")


@click.command(help=__doc__)
@click.option("--count", type=click.IntRange(1000), default=200_000, show_default=True)
@click.option("--teacher", default="torchvision.models:mobilenet_v2", show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where the pictures are made; removed, too.")
def main(count: int, teacher: str, folder: Path | None) -> None:
    root = Path(tempfile.mkdtemp(dir=folder))
    os.environ["COMPRESS_ENV_CACHE"] = str(root / "cache")
    try:
        make(root, count)
        _search(root / "set", teacher)
        kept = sum(f.stat().st_size for f in (root / "cache").rglob("*") if f.is_file()) / 2**20
        click.echo(f"kept on disk: {kept:.1f} MiB")
    finally:
        shutil.rmtree(root)


def _search(pictures: Path, teacher: str) -> None:
    from compress_env.objective import Objective
    from compress_env.spec import EnvironmentSpec

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that a teacher with random weights is no good
    began = time.perf_counter()

    def report(stage: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        click.echo(f"{stage:24} {time.perf_counter() - began:6.1f} s  {time.process_time():6.1f} s of CPU  peak {peak:5.2f} GiB")

    report("before")
    spec = EnvironmentSpec.of_keywords(
        teacher=teacher, data=f"imagefolder:{pictures}", image_size=SIZE, classes=1000, budget={"macs": 0.5}, actions="absolute"
    )
    objective = Objective(spec)
    data = objective.problem.data
    report(f"problem, {len(data.train):,} images")
    _ = objective.evaluator
    report(f"evaluator, {len(objective.evaluator.validation)} images")
    problem = objective.problem
    found = objective.judge_plan(frozenset(), problem.graph.allowed(problem.graph.full * 0.6), {"macs": 1e12})
    report(f"first evaluation, KL {found.evaluation.kl:.3f}" if found.evaluation.kl is not None else found.evaluation.failed)


if __name__ == "__main__":
    main()
