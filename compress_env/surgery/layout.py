"""The layout of networks in memory: channels last, which convolutions prefer, or PyTorch's own where a network needs that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress_env.surgery.rules.registry import rule_of

PLAIN = "plain_layout"
"""In the `meta` of a student: it is computed in PyTorch's own layout."""
TOLERANCE = 0.01
"""Difference of outputs in the two layouts, as a share of the largest, up to which they are taken for rounding."""


class channels_last:
    """Within the block, the weights of a network's convolutions of images lie channels last, unless it needs the plain layout."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> None:
        if not _plain(self.model):
            _lay_out(self.model, torch.channels_last)

    def __exit__(self, *_: object) -> None:
        _lay_out(self.model, torch.contiguous_format)


def memory_format(model: nn.Module, inputs: Tensor) -> torch.memory_format:
    """The layout of inputs of a network within `channels_last`."""
    return torch.channels_last if inputs.dim() == 4 and not _plain(model) else torch.contiguous_format


def in_layout(model: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs in the layout of a network within `channels_last`; of one channel, too, whose strides may be those of either."""
    layout = memory_format(model, inputs)
    return inputs.contiguous(memory_format=layout) if layout == torch.channels_last else _strictly(inputs, layout)


def needs_plain(students: Sequence[nn.Module], examples: tuple[Tensor, ...]) -> bool:
    """Whether one of these fails, or computes something else, channels last: parts that were not traced may look at the layout."""
    for student in students:
        with torch.no_grad():
            expected = student(*examples)
            try:
                with channels_last(student):
                    found = student(*(_strictly(x, memory_format(student, x)) for x in examples))
            except Exception:  # noqa: BLE001 - whatever is raised, it is not raised in the plain layout
                return True
        if (found - expected).abs().max() > TOLERANCE * expected.abs().max():
            return True
    return False


def _strictly(inputs: Tensor, layout: torch.memory_format) -> Tensor:
    """Inputs with the strides of a layout also where those of another one would do, as of one channel."""
    if layout == torch.channels_last:
        return _strictly(inputs.permute(0, 2, 3, 1), torch.contiguous_format).permute(0, 3, 1, 2)
    return inputs.flatten().view(inputs.shape)


def _plain(model: nn.Module) -> bool:
    return bool(getattr(model, "meta", {}).get(PLAIN))


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    for module in model.modules():
        for name in rule_of(module).weights:
            weight = module._parameters.get(name)
            if weight is not None and weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=layout)
