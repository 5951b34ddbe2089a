"""What may know what: imports point down, and importing the package is cheap."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compress_env

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path) -> Path:
    """The package as it is installed: agents/ is a folder in it, so that each module has the name by which it is imported."""
    shutil.copytree(ROOT / "compress_env", tmp_path / "compress_env", ignore=shutil.ignore_patterns("agents", "weights"))
    shutil.copytree(ROOT / "agents", tmp_path / "compress_env" / "agents")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


def test_imports_point_down_only(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module, line", [
    ("search/recorder.py", "from compress_env.agents.saved import load_policy"),
    ("search/run.py", "import compress_env.agents.sb3"),
    ("walk/walk.py", "import gymnasium"),
    ("surgery/build.py", "from compress_env.problem import Problem"),
])  # fmt: skip
def test_an_import_that_points_up_is_found(tree, module, line):
    path = tree / "compress_env" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint(tree)
    assert done.returncode == 1 and f"compress_env.{module[:-3].replace('/', '.')} ->" in done.stdout


def test_the_linter_finds_no_fault():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_importing_the_package_loads_neither_torch_nor_stable_baselines():
    code = "import sys, compress_env; print([m for m in ('torch', 'stable_baselines3', 'torchvision') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_one_folder_knows_stable_baselines_and_agents_leave_the_insides_of_environments_alone():
    agents = [*(ROOT / "agents").rglob("*.py")]
    imports = re.compile(r"^\s*(?:import|from) (?:stable_baselines3|sb3_contrib)", re.M)
    users = {p.parent.name for p in [*agents, *(ROOT / "compress_env").rglob("*.py")] if imports.search(p.read_text())}
    assert users == {"sb3"}
    assert not [p for p in agents if ".unwrapped" in p.read_text() or ".kind" in p.read_text()]


def test_rewards_are_plain_python():
    assert "torch" not in re.findall(r"^(?:import|from) (\w+)", (ROOT / "compress_env/rewards.py").read_text(), re.M)


def test_public_names_exist():
    for name in compress_env.__all__:
        assert getattr(compress_env, name) is not None
