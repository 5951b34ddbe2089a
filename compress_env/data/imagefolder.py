"""`imagefolder:DIR`: images in DIR/train/<class>/ and DIR/test/<class>/, read into memory, and decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from compress_env.data.dataset import Data, Normalization, Split, make_data
from compress_env.data.image_cache import decoded
from compress_env.errors import UserError

MAX_BYTES = 4 << 30


def load(
    directory: str, *, image_size: int | None = None, normalization: Normalization | None = None, progress: bool = True
) -> Data:
    """Data from folders of images, in torchvision's `ImageFolder` layout; `val` is accepted for `test`.

    Args:
        directory: The folder.
        image_size: Pixels, for images of different sizes: the shorter side is resized to it, and the centre cut out.
        normalization: Mean and deviation a channel; those of the training images if None.
        progress: Whether a bar is shown.

    Raises:
        UserError: If folders are missing or differ, an image cannot be read, sizes differ, or all are too large for memory.
    """
    root = Path(directory)
    tests = [root / n for n in ("test", "val") if (root / n).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise UserError(
            f"imagefolder: {root} needs the folders train/<class>/ and test/<class>/; found {_listing(root)}"
        )
    train, folders = _read(root / "train", image_size, progress)
    test, test_folders = _read(tests[0], image_size, progress)
    if folders != test_folders:
        differ = sorted(set(folders) ^ set(test_folders))
        raise UserError(
            f"imagefolder: {root}: train and {tests[0].name} have different class folders, for example {differ[:3]}"
        )
    size = train.inputs.shape[-1]
    return make_data(
        root.name, train, test, outputs=len(folders), normalization=normalization, crop_padding=size // 8, flip=True,
        class_names=folders,
    )  # fmt: skip


def _listing(root: Path) -> str:
    if not root.is_dir():
        return "no such folder"
    return ", ".join(sorted(p.name for p in root.iterdir())[:5]) or "an empty folder"


def _read(folder: Path, image_size: int | None, progress: bool) -> tuple[Split, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        listing = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"imagefolder: {error}") from None
    paths = [str(Path(path).resolve()) for path, _ in listing.samples]
    images = decoded(paths, image_size, lambda: _decode(folder, paths, image_size, progress))
    return Split(images, torch.tensor(listing.targets)), list(listing.class_to_idx)


def _decode(folder: Path, paths: list[str], image_size: int | None, progress: bool) -> Tensor:
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize

    inputs = None
    for i, path in enumerate(tqdm(paths, desc=f"reading {folder.name}", leave=False, disable=not progress)):
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # noqa: BLE001 - Pillow raises OSError, SyntaxError and ValueError for broken files
            raise UserError(f"imagefolder: cannot read {path}: {error}") from None
        if image_size:
            image = center_crop(resize(image, [image_size]), [image_size, image_size])
        pixels = np.asarray(image)
        if inputs is None:
            shape = (len(paths), *pixels.shape)
            if np.prod(shape) > MAX_BYTES:
                raise UserError(
                    f"imagefolder: {folder} takes {np.prod(shape) / 2**30:.1f} GiB in memory; give a smaller image_size"
                )
            inputs = np.empty(shape, np.uint8)
        if pixels.shape != inputs.shape[1:]:
            raise UserError(
                f"imagefolder: {path} is {pixels.shape[1]}x{pixels.shape[0]} pixels, the images before it are "
                f"{inputs.shape[2]}x{inputs.shape[1]}; give an image_size to bring all to one size"
            )
        inputs[i] = pixels
    return torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous()
