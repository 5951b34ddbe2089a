"""Folders of images: `imagefolder:DIR`, with a folder a class, and `images:DIR`, without labels.

Small sets are decoded into memory, once; of large ones, an image is decoded when it is needed.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from compress_env.data import listing, pictures, stored
from compress_env.data.dataset import Data, Normalization, Split, make_data, stratified_split
from compress_env.data.image_cache import decoded
from compress_env.data.listing import Listing
from compress_env.data.stored import Stored
from compress_env.errors import UserError

TESTED = 0.1
"""Share of images without labels that are for the final report, where no folder says which."""
LOOKED_AT = 16
"""Images of a large set whose size is looked at, where no size is given."""


def load(
    directory: str, *, image_size: int | None = None, normalization: Normalization | None = None, validation: str | None = None,
    progress: bool = True,
) -> Data:  # fmt: skip
    """Labelled images in DIR/train/CLASS/ and DIR/test/CLASS/, as torchvision's `ImageFolder` has them.

    Where there is a folder `val` beside `train` and `test`, students are judged on it; without `test`, it is taken for that.

    Args:
        directory: The folder.
        image_size: Pixels, for images of different sizes: the shorter side is resized to it, and the centre cut out.
        normalization: Mean and deviation a channel; those of the training images if None.
        validation: A folder of images to judge students on, as the folder `train`.
        progress: Whether a bar is shown.

    Raises:
        UserError: If folders are missing or differ, an image cannot be read, or sizes differ.
    """
    root, tests = _parts(directory)
    if not (root / "train").is_dir() or not tests:
        raise UserError(
            f"imagefolder: {root} needs the folders train/<class>/ and test/<class>/; found {_content(root)}"
        )
    places = {"train": root / "train", "test": tests[0], **_validation(validation, tests)}
    parts = {part: listing.labelled(place) for part, place in places.items()}
    for part, found in parts.items():
        if parts["train"].names != found.names:
            differ = sorted(set(parts["train"].names) ^ set(found.names))
            raise UserError(
                f"imagefolder: {root}: train and {places[part].name} have different class folders, for example {differ[:3]}"
            )
    return _data(root.name, parts, image_size, normalization, progress, outputs=len(parts["train"].names))


def unlabelled(
    directory: str, *, image_size: int | None = None, normalization: Normalization | None = None, validation: str | None = None,
    progress: bool = True,
) -> Data:  # fmt: skip
    """Images without labels: all in DIR, at any depth; a tenth of them, or those in DIR/test, are for the final report.

    Args:
        directory: The folder.
        image_size: Pixels, as for `load`.
        normalization: Mean and deviation a channel; those of the training images if None.
        validation: A folder of images to judge students on, as the folder `train`.
        progress: Whether a bar is shown.

    Raises:
        UserError: If there are too few images, one cannot be read, or sizes differ.
    """
    root, tests = _parts(directory)
    if not root.is_dir():
        raise UserError(f"images: {root} is no folder; give one with pictures, at any depth")
    if (root / "train").is_dir() and tests:
        parts = {"train": listing.pictures(root / "train"), "test": listing.pictures(tests[0])}
    else:
        found, tests = listing.pictures(root), []
        rest, held = (i.tolist() for i in stratified_split(torch.tensor(found.labels), TESTED, seed=0))
        parts = {part: Listing([found.paths[i] for i in own], [0] * len(own), []) for part, own in (("train", rest), ("test", held))}
    parts |= {part: listing.pictures(place) for part, place in _validation(validation, tests).items()}
    return _data(root.name, parts, image_size, normalization, progress, labelled=False, outputs=1)


def _validation(given: str | None, tests: list[Path]) -> dict[str, Path]:
    """The folder of validation images, if one is given, or lies beside that of test images."""
    own = Path(given) if given else tests[1] if len(tests) == 2 else None
    return {"validation": own} if own else {}


def _data(
    name: str, parts: dict[str, Listing], image_size: int | None, normalization: Normalization | None, progress: bool,
    outputs: int, labelled: bool = True,
) -> Data:  # fmt: skip
    paths = parts["train"].paths
    height, width = (image_size, image_size) if image_size else _size(paths[0])
    large = sum(len(own.paths) for own in parts.values()) * 3 * height * width > stored.IN_MEMORY
    if large and not image_size:
        _check_sizes(paths, (height, width))
    splits = {}
    for part, own in parts.items():
        if large:
            read = partial(_read, own.paths, (height, width))
            inputs: Tensor | Stored = Stored(read, np.arange(len(own.paths)), (3, height, width))
        else:
            paths = [os.path.realpath(path) for path in own.paths]
            inputs = decoded(paths, image_size, partial(_decode, part, paths, image_size, progress))
        splits[part] = Split(inputs, torch.tensor(own.labels))
    return make_data(
        name, splits["train"], splits["test"], outputs=outputs, normalization=normalization, crop_padding=width // 8, flip=True,
        labelled=labelled, class_names=parts["train"].names, validation=splits.get("validation"),
    )  # fmt: skip


def _parts(directory: str) -> tuple[Path, list[Path]]:
    root = Path(directory)
    return root, [root / n for n in ("test", "val") if (root / n).is_dir()]


def _content(root: Path) -> str:
    if not root.is_dir():
        return "no such folder"
    return ", ".join(sorted(p.name for p in root.iterdir())[:5]) or "an empty folder"


def _size(path: str) -> tuple[int, int]:
    """Height and width, of which the header tells."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # noqa: BLE001 - Pillow raises OSError, SyntaxError and ValueError for broken files
        raise UserError(f"imagefolder: cannot read {path}: {error}") from None


def _check_sizes(paths: list[str], size: tuple[int, int]) -> None:
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        if (found := _size(path)) != size:
            raise _differing(path, found, size)


def _differing(path: str, found: tuple[int, int], size: tuple[int, int]) -> UserError:
    return UserError(
        f"imagefolder: {path} is {found[1]}x{found[0]} pixels, the images before it are {size[1]}x{size[0]}; give an image_size to "
        "bring all to one size"
    )


def _read(paths: list[str], size: tuple[int, int], index: int) -> np.ndarray:
    """An image as `(3, height, width)`; of a set that is too large to look at all, those of another size are brought to it."""
    return np.ascontiguousarray(pictures.read(paths[index], size).transpose(2, 0, 1))


def _decode(part: str, paths: list[str], image_size: int | None, progress: bool) -> Tensor:
    inputs = None
    for i, path in enumerate(tqdm(paths, desc=f"reading {part}", leave=False, disable=not progress)):
        found = pictures.read(path, image_size)
        if inputs is None:
            inputs = np.empty((len(paths), *found.shape), np.uint8)
        if found.shape != inputs.shape[1:]:
            raise _differing(path, found.shape[:2], inputs.shape[1:3])
        inputs[i] = found
    return torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous()
