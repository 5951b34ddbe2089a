"""Examples of a torch dataset: `split_of`, `sample`. What is no such dataset is refused by name, with the cure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from compress_env.data import stored
from compress_env.data.dataset import Split
from compress_env.data.stored import Stored
from compress_env.errors import UserError

EXAMPLE = "give pairs (input, label), for example from a Dataset whose __getitem__ returns them"
PARTS = ("training", "test")


def check_dataset(dataset: Any, part: str) -> None:
    """Look whether this is a torch dataset that is indexed by numbers.

    Args:
        dataset: Anything.
        part: "training" or "test", for messages.

    Raises:
        UserError: If it is anything else; the message says what to give.
    """
    what = f"the {part} data"
    if isinstance(dataset, DataLoader):
        raise UserError(f"{what} is a DataLoader; give the dataset that it reads, its .dataset: batches and their order are made here")
    if isinstance(dataset, Tensor):
        raise UserError(f"{what} is a tensor; give torch.utils.data.TensorDataset(inputs, labels)")
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, (IterableDataset, Mapping)) or not indexed:
        raise UserError(
            f"{what} is a {type(dataset).__name__}, of which no example can be asked for by its number; give a dataset with __len__ "
            "and __getitem__, such as list(dataset) if it fits into memory"
        )
    try:
        count = len(dataset)
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        raise UserError(f"{what} does not say how many examples it has: {type(error).__name__}: {error}") from error
    if count == 0:
        raise UserError(f"data: one of the datasets is empty ({what})")


def split_of(dataset: Any, part: str) -> Split:
    """The examples of a torch dataset of `(input, label)`: in memory, or, if that takes too much, asked for when they are needed.

    Args:
        dataset: A dataset, or a split as it is.
        part: "training" or "test", for messages.

    Raises:
        UserError: If it is no dataset that is indexed by numbers, or inputs or labels are of different shapes; or if it is large, and
            does not tell its labels.
    """
    if isinstance(dataset, Split):
        return dataset
    check_dataset(dataset, part)
    first, _ = sample(dataset, 0, part)
    if first.numel() * first.element_size() * len(dataset) > stored.IN_MEMORY:
        return _stored(dataset, part, first)
    parts = []
    for what, tensors in zip(("inputs", "labels"), zip(*(sample(dataset, i, part) for i in range(len(dataset))))):
        shapes = {tuple(t.shape) for t in tensors}
        if len(shapes) > 1:
            raise UserError(f"data: {what} have different shapes, for example {sorted(shapes)[:2]}; bring them to one")
        parts.append(torch.stack(tensors))
    inputs, labels = parts
    return Split(inputs, labels if labels.is_floating_point() else labels.long())


def _stored(dataset: Any, part: str, first: Tensor) -> Split:
    labels = _labels(dataset)
    if labels is None or len(labels) != len(dataset):
        raise UserError(
            f"the {part} data is a {type(dataset).__name__} of {len(dataset):,} examples, too many for the memory, and does not say "
            "their labels; give it an attribute targets, a list of them, as torchvision's datasets have"
        )
    for index in {0, len(dataset) // 2, len(dataset) - 1}:
        found = sample(dataset, index, part)[1]
        if found.tolist() != labels[index].tolist():
            said = labels[index].tolist()
            raise UserError(f"the {part} data: example {index} has the label {found.tolist()}, and its targets say {said}")
    dtype = torch.float32 if first.is_floating_point() else first.dtype
    read = partial(_input, dataset, part, tuple(first.shape))
    return Split(Stored(read, np.arange(len(dataset)), tuple(first.shape), dtype), labels)


def _input(dataset: Any, part: str, shape: tuple[int, ...], index: int) -> np.ndarray:
    found = sample(dataset, index, part)[0]
    if tuple(found.shape) != shape:
        raise UserError(
            f"example {index} of the {part} data has the shape {tuple(found.shape)}, and the first one {shape}; bring them to one"
        )
    return (found.float() if found.is_floating_point() else found).numpy()


def _labels(dataset: Any) -> Tensor | None:
    """The labels of all examples, if a dataset tells them without being asked for each, as torchvision's do."""
    if isinstance(dataset, Subset):
        whole = _labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    found = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    try:
        labels = None if found is None else torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels if labels is None or labels.is_floating_point() else labels.long()


def sample(dataset: Any, index: int, part: str) -> tuple[Tensor, Tensor]:
    """One example of a dataset.

    Args:
        dataset: Passed `check_dataset`.
        index: Its number.
        part: "training" or "test", for messages.

    Returns:
        Input and label. An image of Pillow becomes uint8 pixels `(channels, height, width)`, one channel if it is grey, else three.

    Raises:
        UserError: That names the example and what is wrong with it.
    """
    where = f"example {index} of the {part} data"
    try:
        found = dataset[index]
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        line = next(iter(str(error).splitlines()), "")
        raise UserError(f"{where} cannot be read: {type(error).__name__}: {line}; mend the dataset, or leave it out") from error
    if isinstance(found, Mapping):
        raise UserError(f"{where} is a dict of {', '.join(map(repr, list(found)[:4]))}; {EXAMPLE}")
    if not isinstance(found, (tuple, list)) or len(found) < 2:
        raise UserError(f"{where} is a {type(found).__name__} without a label; {EXAMPLE}")
    return _tensor(pixels(found[0], where) if isinstance(found[0], Image.Image) else found[0], f"the input of {where}"), _label(
        found[1], f"the label of {where}"
    )


def pixels(image: Image.Image, where: str) -> Tensor:
    """Pixels `(channels, height, width)` of an 8-bit image, grey or RGB. Raises UserError for more bits a pixel."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{where} is an image of mode {image.mode}, with more than 8 bits a pixel; convert it, or give tensors")
    grey = image.mode in ("L", "1", "LA")
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(array.copy()).unsqueeze(0) if grey else torch.from_numpy(array.copy()).permute(2, 0, 1)


def _label(value: Any, what: str) -> Tensor:
    if isinstance(value, str):
        raise UserError(f"{what} is the text {value!r}; number such texts from 0, in the order of the teacher's outputs")
    return _tensor(value, what)


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{what} is a {type(value).__name__}; it has to be a tensor, an array or a number") from None
