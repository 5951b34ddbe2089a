"""Recurrent layers: one node of the network each, whose widths stay."""

from __future__ import annotations

from torch import nn

from compress_env.surgery.rules.base import Rule, register_rule


@register_rule(nn.RNNBase)
class Recurrent(Rule):
    """A layer whose inside is not followed."""
