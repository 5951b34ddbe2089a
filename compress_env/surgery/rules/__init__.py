"""What is known of layers and functions: one file a family, each with its `Rule`; a user's own are registered in the same way."""

from __future__ import annotations

from compress_env.surgery.rules import (
    dense,
    elementwise,
    joining,
    moving,
    normalisation,
    pooling,
    products,
    recurrent,
)
from compress_env.surgery.rules.base import Geometry, Rule, register_function, register_rule, rule_of

__all__ = [
    "Geometry",
    "Rule",
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
]
