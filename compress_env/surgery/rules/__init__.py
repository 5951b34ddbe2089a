"""The knowledge of layers and functions: one file a family, each with its `Rule`; a user's own are registered in the same way."""

from __future__ import annotations

from compress_env.surgery.rules import (
    attention,
    dense,
    elementwise,
    filters,
    joining,
    making,
    moving,
    normalisation,
    pooling,
    products,
    recurrent,
    transposed,
    window_attention,
)
from compress_env.surgery.rules.base import Geometry, Rule
from compress_env.surgery.rules.dense import Dense
from compress_env.surgery.rules.registry import differs, leave_alone, register_function, register_rule, rule_of

__all__ = [
    "Dense",
    "Geometry",
    "Rule",
    "attention",
    "dense",
    "differs",
    "elementwise",
    "filters",
    "joining",
    "leave_alone",
    "making",
    "moving",
    "normalisation",
    "pooling",
    "products",
    "recurrent",
    "register_function",
    "register_rule",
    "rule_of",
    "transposed",
    "window_attention",
]
