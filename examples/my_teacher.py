"""A network of one's own as it comes: ReLUs in place, a trainer's checkpoint, photos of several sizes; compressed and exported.

You will see teacher and student, within 40 % of its parameters and half its MACs. `compress-env search --teacher my_teacher.py:Net
--weights last.pt --data imagefolder:photos --image-size 8 --budget params=40%` does the same. CPU, 20 s.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import compress_env
from compress_env.data import load_data
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import fit


class Net(nn.Module):
    """Three convolutions, two of them with a shortcut around them, written as in many a tutorial."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)), inplace=True)))
        out += x
        return self.head(F.relu(out, inplace=True).mean((2, 3)))


def main(folder: Path):
    torch.set_num_threads(1)
    for i, (image, label) in enumerate(zip(*load_digits(return_X_y=True))):  # photos, which users have already
        place = folder / "photos" / ("test" if i % 4 == 0 else "train") / f"digit-{label}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 255 / 16).astype("uint8")).resize((8 + i % 5, 8 + i % 3)).save(place)
    photos, recipe = f"imagefolder:{folder / 'photos'}", Recipe(epochs=8, batch_size=64, augment=False)
    generator, net = torch.manual_seed(0), Net()
    fit(net, load_data(photos, image_size=8), recipe, lambda logits, y, *_: F.cross_entropy(logits, y), generator)
    torch.save({"epoch": 8, "state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, folder / "last.pt")
    settings = {"weights": folder / "last.pt", "image_size": 8, "finetune_epochs": 8, "out": folder / "run", "progress": False}
    found = compress_env.compress(f"{__file__}:Net", photos, {"params": "40%", "macs": 0.5}, "random", 20, **settings)
    for name, used in found.result.student.usage.items():
        print(f"{name:14} teacher {found.result.teacher.usage[name]:>12,.1f} student {used:>12,.1f}")
    before, after = found.result.teacher.metric_test, found.result.student.metric_test
    print(f"test accuracy  teacher {before:12.2%} student {after:12.2%}, {', '.join(found.result.exports)} are in the run folder")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
