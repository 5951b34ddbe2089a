"""What is known of layers and functions: one file a family, each with its `Rule`; a user's own are registered in the same way."""

from __future__ import annotations

from compress_env.surgery.rules import (
    attention,
    dense,
    elementwise,
    joining,
    moving,
    normalisation,
    pooling,
    products,
    recurrent,
    window_attention,
)
from compress_env.surgery.rules.base import Geometry, Rule, register_function, register_rule, rule_of
from compress_env.surgery.rules.dense import Dense

__all__ = [
    "Dense",
    "Geometry",
    "Rule",
    "attention",
    "dense",
    "elementwise",
    "joining",
    "moving",
    "normalisation",
    "pooling",
    "products",
    "recurrent",
    "register_function",
    "register_rule",
    "rule_of",
    "window_attention",
]
