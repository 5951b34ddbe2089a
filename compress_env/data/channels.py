"""Pictures in grey or in colour, as a teacher takes them: `with_channels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from compress_env.data.dataset import STATISTICS, Data, Normalization, Split, pixel_statistics
from compress_env.data.stored import Stored

LUMA = (19595, 38470, 7471)
"""Parts of red, green and blue in 65,536 parts of grey (ITU-R 601, as Pillow rounds them)."""


def with_channels(data: Data, channels: int, normalization: Normalization | None = None) -> Data:
    """The same pictures with 1 or 3 channels.

    Args:
        data: Its inputs are uint8 pictures with 3 or 1 channels.
        channels: How many they are to have.
        normalization: Mean and deviation a channel; those of the training pictures if None.
    """
    train, validation, test = (_converted(split, channels) for split in (data.train, data.validation, data.test))
    normalization = normalization or pixel_statistics(train.inputs[:STATISTICS])
    return replace(data, train=train, validation=validation, test=test, normalization=normalization, _cache={})


def _converted(split: Split, channels: int) -> Split:
    inputs = split.inputs
    if isinstance(inputs, Stored):
        read = partial(_read, inputs.read, channels)
        return Split(Stored(read, inputs.rows, (channels, *inputs.shape[2:]), inputs.dtype), split.labels)
    return Split(_pixels(inputs, channels), split.labels)


def _read(read: Callable[[int], np.ndarray], channels: int, index: int) -> np.ndarray:
    return _pixels(torch.from_numpy(np.array(read(index)))[None], channels)[0].numpy()


def _pixels(images: Tensor, channels: int) -> Tensor:
    """Images `(n, channels, height, width)` uint8."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    parts = torch.tensor(LUMA, dtype=torch.int32).view(1, 3, 1, 1)
    return ((images.int() * parts).sum(1, keepdim=True) + (1 << 15) >> 16).to(torch.uint8)
