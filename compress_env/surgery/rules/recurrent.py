"""Recurrent layers: one node of the network each, whose widths stay."""

from __future__ import annotations

from torch import nn

from compress_env.surgery.rules.base import Rule
from compress_env.surgery.rules.registry import register_rule


@register_rule(nn.RNNBase)
class Recurrent(Rule):
    """A layer whose inside is not followed."""
