"""scikit-learn's bundled handwritten digits (Alpaydin & Kaynak 1998): 1,797 grey images of 8x8, no download."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import Tensor

from compress_env import cache
from compress_env.data.dataset import Data, Normalization, Split, make_data, stratified_split


def load(normalization: Normalization | None = None) -> Data:
    """Digits: 30 % are the test images, 20 % of the rest the validation split, all stratified with fixed seeds."""
    key = cache.content_key("digits", version("scikit-learn"))
    everything = cache.tensors("images", key, _read, lambda found: Split(found["pixels"], found["labels"]))
    train, test = stratified_split(everything.labels, 0.3, seed=0)
    return make_data(
        "digits", everything.take(train), everything.take(test),
        outputs=10, normalization=normalization, crop_padding=1, validation_share=0.2,
        class_names=list("0123456789"),
    )  # fmt: skip


def _read() -> dict[str, Tensor]:
    from sklearn.datasets import load_digits  # importing it takes a second

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    return {"pixels": pixels, "labels": torch.from_numpy(bunch.target).long()}
