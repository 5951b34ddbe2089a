"""Data sets by name, by folder, by factory or as a pair of torch datasets: `load_data`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from os import PathLike
from typing import Any

from compress_env.data import digits, hugging_face, imagefolder, torchvision_sets
from compress_env.data.channels import with_channels
from compress_env.data.dataset import Data, Normalization, Split, make_data
from compress_env.data.label_names import label_names
from compress_env.data.samples import PARTS, split_of
from compress_env.errors import UserError
from compress_env.registry import Registry

DATASETS = Registry("data set")
DATASETS.register("digits")(digits.load)
DATASETS.register("cifar10")(torchvision_sets.cifar10)
DATASETS.register("fashion-mnist")(torchvision_sets.fashion_mnist)
Load = Callable[..., Data]
LOCATED: dict[str, Load] = {"imagefolder:": imagefolder.load, "images:": imagefolder.unlabelled, "hf:": hugging_face.load}
"""Where data may lie, by how their name begins; they are read, and no code is run."""

__all__ = ["DATASETS", "LOCATED", "Data", "Normalization", "Split", "load_data", "make_data"]


def load_data(
    spec: Any, *, normalization: Normalization | None = None, image_size: int | None = None, validation: Any = None,
    progress: bool = False,
) -> Data:  # fmt: skip
    """`Data` from a `Data`, a pair `(train, test)` of torch datasets, a name, a place or a factory `module:attribute`.

    A place is `imagefolder:DIR`, `images:DIR` (without labels) or `hf:NAME_OR_PATH` (of the package `datasets`).

    Args:
        spec: The data, or where they come from.
        normalization: Mean and deviation a channel that the teacher was trained with; the data set's own if None.
        image_size: Pixels to bring the images of a place to.
        validation: Examples to judge students on: a folder of images, for folders; for a pair a third dataset.
        progress: Whether a bar is shown while images are read.

    Raises:
        UserError: For what cannot be used.
    """
    if isinstance(spec, Data):
        if validation is not None:
            raise UserError(f"the data set {spec.name!r} has validation examples; make it with others, by make_data(validation=...)")
        return spec
    if isinstance(spec, (tuple, list)) and len(spec) == 2:
        if isinstance(validation, str):
            raise UserError("validation is a folder, for data that are a folder, too; give a dataset as (train, test) are")
        train, test = map(split_of, spec, PARTS)
        own = None if validation is None else split_of(validation, "validation")
        return make_data("custom", train, test, normalization=normalization, class_names=label_names(spec[0]), validation=own)
    if not isinstance(spec, str):
        raise UserError(
            f"data has to be a name, a factory or a pair (train, test) of torch datasets, got {type(spec).__name__}; of DataLoaders, "
            "give the two .dataset"
        )
    for prefix, load in LOCATED.items():
        if spec.startswith(prefix):
            grey = normalization is not None and len(normalization[0]) == 1
            kept = None if grey else normalization
            given = {} if validation is None else {"validation": _folder(validation, prefix)}
            data = load(spec.removeprefix(prefix), image_size=image_size, normalization=kept, progress=progress, **given)
            return with_channels(data, 1, normalization) if grey else data
    if image_size is not None:
        raise UserError(f"image_size is for imagefolder:DIR, images:DIR and hf:NAME; the data set {spec!r} has its own size")
    if validation is not None and spec in DATASETS.names():
        raise UserError(f"the data set {spec!r} has its own validation examples; validation is for imagefolder:DIR and (train, test)")
    factory = DATASETS.get(spec)
    loaded = _made(spec, factory, normalization)
    return load_data(loaded, normalization=normalization, validation=validation)


def _made(spec: str, factory: Any, normalization: Normalization | None) -> Any:
    """What a factory of the user's gives. Raises UserError if it is none, needs arguments, or fails."""
    try:
        takes = inspect.signature(factory)
        arguments = {"normalization": normalization} if "normalization" in takes.parameters else {}
        takes.bind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"data {spec!r} is no factory that can be called without arguments: {error}") from error
    try:
        return factory(**arguments)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        raise UserError(f"data {spec!r} failed: {type(error).__name__}: {error}") from error


def _folder(validation: Any, prefix: str) -> str:
    """The folder of a user's own validation images. Raises UserError if it is none, or the data are no folder."""
    if prefix == "hf:" or not isinstance(validation, (str, PathLike)):
        what = "hf: sets, which have splits" if prefix == "hf:" else f"a {type(validation).__name__}"
        raise UserError(f"validation is a folder, for folders of images, and not {what}; give imagefolder:DIR, or (train, test)")
    place = str(validation).removeprefix(prefix)
    if not os.path.isdir(place):
        raise UserError(f"validation: {place} is no folder; give one with images as those in {prefix}DIR/train")
    return place
