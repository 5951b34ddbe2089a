"""Public names, as users and their type checkers see them: mypy checks this file, too, and reports what is no error any more."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import compress_env


def wrong_uses() -> None:
    """What a type checker refuses; it would not if these names were of any type."""
    compress_env.compress(evaluations="many")  # type: ignore[call-overload]
    compress_env.compress(budgett={"macs": 0.5}, evaluations=None)  # type: ignore[call-overload]
    compress_env.distil(out=7)  # type: ignore[arg-type, call-arg]
    compress_env.inspect(input_shape=3)  # type: ignore[arg-type]
    compress_env.preset(7)  # type: ignore[arg-type]
    compress_env.Plan(removed=1)  # type: ignore[arg-type]
    compress_env.compres()  # type: ignore[attr-defined]




def test_every_public_name_is_one_object_for_type_checkers_and_at_run_time() -> None:
    tree = ast.parse(Path(str(compress_env.__file__)).read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {name.name: str(node.module) for node in typed.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert imported == compress_env._PUBLIC
    assert {*imported, "ENV_IDS", "__version__"} == {*compress_env.__all__} <= {*dir(compress_env)}
    for name, module in imported.items():
        assert getattr(compress_env, name) is getattr(importlib.import_module(module), name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        _ = compress_env.compres  # type: ignore[attr-defined]
