"""scikit-learn's bundled handwritten digits (Alpaydin & Kaynak 1998): 1,797 grey images of 8x8, no download."""

from __future__ import annotations

import torch

from compress_env.data.dataset import Data, Normalization, Split, make_data, stratified_split


def load(normalization: Normalization | None = None) -> Data:
    """Digits: 30 % are the test images, 20 % of the rest the validation split, all stratified with fixed seeds."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = stratified_split(labels, 0.3, seed=0)
    everything = Split(pixels, labels)
    return make_data(
        "digits", everything.take(train), everything.take(test),
        outputs=10, normalization=normalization, crop_padding=1, validation_share=0.2,
        class_names=list("0123456789"),
    )  # fmt: skip
