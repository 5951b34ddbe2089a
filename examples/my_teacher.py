"""A network of one's own: a class in one's own file, a checkpoint, a folder of images; compressed and exported.

You will see teacher and student, within 40 % of its parameters and half its MACs, and files that need no code of ours. `compress-env
search --teacher my_teacher.py:SmallVGG --weights teacher.pt --data imagefolder:photos --budget params=40%` does the same. CPU, 20 s.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import compress_env
from compress_env.data import load_data
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import fit


class SmallVGG(nn.Sequential):
    """Five convolutions and two linear layers; any network that `torch.fx` can trace will do."""

    def __init__(self):
        layers = []
        for a, b in ((3, 16), (16, 16), (16, 32), (32, 32), (32, 32)):
            layers += [nn.Conv2d(a, b, 3, 2 if a < b else 1, 1), nn.BatchNorm2d(b), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def make_folder(root: Path):
    """`train/CLASS/*.png` and `test/CLASS/*.png`, which users have already; here of handwritten digits."""
    for i, (image, label) in enumerate(zip(*load_digits(return_X_y=True))):
        place = root / ("test" if i % 4 == 0 else "train") / f"digit-{label}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 255 / 16).astype("uint8")).save(place)


def main(folder: Path):
    torch.set_num_threads(1)
    recipe, generator = Recipe(epochs=8, batch_size=64, augment=False), torch.manual_seed(0)
    make_folder(folder / "photos")
    photos, teacher = f"imagefolder:{folder / 'photos'}", SmallVGG()
    fit(teacher, load_data(photos), recipe, lambda logits, labels, *_: nn.functional.cross_entropy(logits, labels), generator)
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    settings = {"weights": folder / "teacher.pt", "evaluator": {"calibration_images": 128}, "finetune_epochs": 8}
    budget, out = {"params": "40%", "macs": 0.5}, folder / "run"
    found = compress_env.compress(f"{__file__}:SmallVGG", photos, budget, "random", 20, out=out, progress=False, **settings)
    teacher, student = found.result.teacher, found.result.student
    for name, used in student.usage.items():
        print(f"{name:14} teacher {teacher.usage[name]:>12,.1f} student {used:>12,.1f}")
    print(f"{'test accuracy':14} teacher {teacher.metric_test:12.2%} student {student.metric_test:12.2%}")
    for name, difference in found.result.exports.items():
        print(f"{name:14} {(found.folder / name).stat().st_size:,} bytes, within {difference:.0e} of PyTorch's outputs")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
