"""Every file of examples/ is short, runs from anywhere, prints its table and leaves nothing behind."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import fresh
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NAMES = {"deploy", "mlflow_tracking", "my_agent", "my_layer", "my_loss", "my_resource", "my_reward", "my_task", "my_teacher",
         "quickstart", "weights_and_biases", "without_gymnasium"}  # fmt: skip
SHORTER = {"quickstart": ("STUDENTS = 150", "STUDENTS = 20")}
"""What is changed in an example that takes long; README's program is its like, and runs as it is."""
WATCHED_WITH = ("wandb", "mlflow")
"""Packages that two examples need, and nothing else."""


def test_the_promised_examples_are_there():
    assert {path.stem for path in EXAMPLES} >= NAMES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_short_and_says_what_will_be_seen(path):
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert "You will see" in " ".join(ast.get_docstring(ast.parse(text)).split())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_prints_a_table_and_leaves_no_file(path, tmp_path):
    if missing := [name for name in WATCHED_WITH if f"import {name}" in path.read_text() and find_spec(name) is None]:
        pytest.skip(f"needs {missing[0]}")
    program: str | Path = path
    if change := SHORTER.get(path.stem):
        program = path.read_text().replace(*change)
        assert program != path.read_text()
    done = fresh.run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert 3 <= len(lines) <= 12 and all(line.strip() for line in lines), done.stdout
    assert "nan" not in done.stdout.lower()
    assert list(tmp_path.iterdir()) == []
    shown = re.search(rf"^### {path.stem}\n.*?^```\n(.*?)^```", (ROOT / "docs" / "examples.md").read_text(), re.M | re.S)
    assert shown and words(shown[1]) == words(done.stdout), "run python -m benchmarks.gallery"


def words(text: str) -> list[str]:
    """Texts of a table without their numbers, which depend on the machine."""
    return re.findall(r"[^\W\d]+", text)
