"""`hf:NAME_OR_PATH`: an image data set of Hugging Face's `datasets`, by its name on the hub, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress_env.data import pictures, stored
from compress_env.data.dataset import Data, Normalization, Split, make_data
from compress_env.data.stored import Stored
from compress_env.errors import UserError
from compress_env.extras import need

TESTS = ("test", "validation", "val", "valid")


def load(
    name: str, *, image_size: int | None = None, normalization: Normalization | None = None, progress: bool = True
) -> Data:
    """Data of a set with the splits train and test (or validation), a column of images, and one of class labels if there are any.

    Images are decoded when they are needed, unless all fit into memory. No code of the set's own is run.

    Args:
        name: On the hub, such as `cifar10`, or a folder.
        image_size: Pixels, for images of different sizes: the shorter side is resized to it, and the centre cut out.
        normalization: Mean and deviation a channel; those of the training images if None.
        progress: Whether bars are shown.

    Raises:
        UserError: If the package is missing, the set cannot be loaded, or it has no such splits and columns.
    """
    splits = _splits(name, progress)
    test = next((n for n in TESTS if n in splits), None)
    if "train" not in splits or test is None:
        raise UserError(f"hf:{name} needs the splits train and test (or validation); it has {', '.join(splits)}")
    features = splits["train"].features
    images = [n for n, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [n for n, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if len(images) != 1 or len(labels) > 1:
        kinds = ", ".join(f"{n} ({type(feature).__name__})" for n, feature in features.items())
        raise UserError(f"hf:{name} needs one column of images and one of class labels, or none of these; it has {kinds}")
    shape = (image_size, image_size) if image_size else pictures.pixels(splits["train"][0][images[0]], None).shape[:2]
    count = len(splits["train"]) + len(splits[test])
    parts = [_split(f"hf:{name}", splits[n], n, images[0], labels, shape, count, bool(image_size)) for n in ("train", test)]
    return make_data(
        Path(name).name, *parts, outputs=len(features[labels[0]].names) if labels else 1, normalization=normalization,
        crop_padding=shape[1] // 8, flip=True, labelled=bool(labels),
        class_names=features[labels[0]].names if labels else (),
    )  # fmt: skip


def _splits(name: str, progress: bool) -> Any:
    need("hf:...", "datasets")
    import datasets

    if not progress:
        datasets.disable_progress_bars()
    try:
        return datasets.load_from_disk(name) if (Path(name) / "dataset_dict.json").is_file() else datasets.load_dataset(name)
    except Exception as error:  # noqa: BLE001 - what the package raises differs with its version
        line = next(iter(str(error).splitlines()), "")
        raise UserError(f"hf:{name} cannot be loaded: {type(error).__name__}: {line}; give a name on the hub, or a folder") from error


def _split(
    what: str, own: Any, part: str, column: str, labels: list[str], size: tuple[int, int], count: int, resized: bool
) -> Split:
    numbers = torch.tensor(own[labels[0]][:] if labels else [0] * len(own))
    if labels and int(numbers.min()) < 0:
        raise UserError(f"{what}: some examples of {part} have no label (-1); give another split, or images alone")
    read = partial(_read, own, column, f"{what}: example", size if resized else None, size)
    inputs: Tensor | Stored = Stored(read, np.arange(len(own)), (3, *size))
    if count * 3 * size[0] * size[1] <= stored.IN_MEMORY:
        inputs = inputs[:]
    return Split(inputs, numbers)


def _read(own: Any, column: str, where: str, size: tuple[int, int] | None, shape: tuple[int, int], index: int) -> np.ndarray:
    try:
        found = pictures.pixels(own[index][column], size)
    except UserError as error:
        raise UserError(f"{where} {index} {error}") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises OSError, SyntaxError and ValueError for broken files
        raise UserError(f"{where} {index} cannot be read: {type(error).__name__}: {error}") from None
    if found.shape[:2] != shape:
        raise UserError(
            f"{where} {index} is {found.shape[1]}x{found.shape[0]} pixels, the first one {shape[1]}x{shape[0]}; give an image_size"
        )
    return np.ascontiguousarray(found.transpose(2, 0, 1))
